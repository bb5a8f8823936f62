"""The Hub: pushed, fetched, pinned. The client is real, the server is a stub on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clara_dist.config import ClaraConfig, LoraSettings
from clara_dist.errors import ModelError
from clara_dist.model import ClaraModel
from hub_stub import TOKEN, HubStub, running_hub
from tiny_models import randomize_adapters


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubStub]:
    with running_hub(monkeypatch, tmp_path / "hub-cache") as stub:
        yield stub


@pytest.fixture
def base_commit(hub: HubStub, tiny_base_dir: Path) -> str:
    return hub.add("org/base", tiny_base_dir)


def new_model(base: str) -> ClaraModel:
    config = ClaraConfig(base_model=base, n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=4))
    clara = ClaraModel.from_base(config)
    randomize_adapters(clara)
    return clara


def same_weights(one: ClaraModel, other: ClaraModel) -> bool:
    mine, theirs = one.added_tensors(), other.added_tensors()
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def test_a_pushed_model_comes_back(hub: HubStub, base_commit: str) -> None:
    clara = new_model("org/base")
    assert clara.config.base_revision == base_commit
    url = clara.push_to_hub("me/clara", private=True, token=TOKEN, commit_message="first")
    repo = hub.repos["me/clara"]
    assert repo.private
    assert repo.messages[-1] == "first"
    assert url == f"{hub.url}/me/clara/commit/{repo.sha}"
    assert {name for name in repo.files if name.endswith(".safetensors")} == {
        "memory_embeddings.safetensors",
        *(f"{role}/adapter_model.safetensors" for role in clara.config.roles),
    }
    config = json.loads(repo.files["config.json"])
    assert (config["base_model"], config["base_revision"]) == ("org/base", base_commit)
    adapter = json.loads(repo.files["generator/adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("org/base", base_commit)
    card = repo.files["README.md"].decode()
    assert "base_model: org/base" in card
    assert base_commit in card
    assert 'from_pretrained("me/clara")' in card

    with pytest.raises(ModelError, match="me/clara is neither a model directory nor a model on the Hub"):
        ClaraModel.from_pretrained("me/clara")
    loaded = ClaraModel.from_pretrained("me/clara", token=TOKEN)
    assert loaded.config == clara.config
    assert same_weights(loaded, clara)
    assert loaded.fingerprint_fields() == clara.fingerprint_fields()


def test_a_base_stays_at_the_commit_that_the_model_was_made_on(
    hub: HubStub, base_commit: str, tiny_base_dir: Path, tmp_path: Path
) -> None:
    clara = new_model("org/base")
    clara.save_pretrained(tmp_path / "model")
    fields = clara.fingerprint_fields()
    assert fields["base"] == f"hub:org/base@{base_commit}"
    newer = hub.add("org/base", {"config.json": b"{}", "model.safetensors": b"another"})
    loaded = ClaraModel.from_pretrained(tmp_path / "model")
    assert loaded.config.base_revision == base_commit != newer
    assert loaded.fingerprint_fields() == fields
    assert torch.equal(loaded.base.get_input_embeddings().weight, clara.base.get_input_embeddings().weight)
    # A base that was given instead is another one, at its own commit.
    elsewhere = hub.add("org/copy", tiny_base_dir)
    moved = ClaraModel.from_pretrained(tmp_path / "model", base_model="org/copy")
    assert (moved.config.base_model, moved.config.base_revision) == ("org/copy", elsewhere)


def test_revisions_of_a_model(hub: HubStub, base_commit: str) -> None:
    clara = new_model("org/base")
    clara.push_to_hub("me/clara", token=TOKEN)
    first = hub.repos["me/clara"].sha
    before = new_model("org/base")
    randomize_adapters(clara, seed=1)
    clara.push_to_hub("me/clara", token=TOKEN)
    assert same_weights(ClaraModel.from_pretrained("me/clara"), clara)
    assert same_weights(ClaraModel.from_pretrained("me/clara", revision=first), before)
    with pytest.raises(ModelError, match="no-such-branch"):
        ClaraModel.from_pretrained("me/clara", revision="no-such-branch")


def test_only_model_files_are_fetched_and_replaced(hub: HubStub, base_commit: str) -> None:
    clara = new_model("org/base")
    clara.push_to_hub("me/clara", token=TOKEN)
    repo = hub.repos["me/clara"]
    hub.add("me/clara", repo.files | {"LICENSE": b"mine", "merges.txt": b"stale", "optimizer.pt": b"pickled"})
    hub.requests.clear()
    ClaraModel.from_pretrained("me/clara")
    fetched = {request.rpartition("/")[2] for request in hub.requests if request.startswith("GET /me/clara/resolve/")}
    assert "memory_embeddings.safetensors" in fetched
    assert not fetched & {"LICENSE", "optimizer.pt"}
    clara.push_to_hub("me/clara", token=TOKEN)
    assert {"LICENSE", "optimizer.pt"} < repo.files.keys()
    assert "merges.txt" not in repo.files


def test_a_base_on_this_machine_needs_a_name_for_others(hub: HubStub, base_commit: str, tiny_base_dir: Path) -> None:
    clara = new_model(str(tiny_base_dir))
    with pytest.raises(ModelError, match=r"(?s)nobody else can load it.*base_model="):
        clara.push_to_hub("me/clara", token=TOKEN)
    assert "me/clara" not in hub.repos
    clara.push_to_hub("me/clara", base_model="org/base", token=TOKEN)
    loaded = ClaraModel.from_pretrained("me/clara")
    assert (loaded.config.base_model, loaded.config.base_revision) == ("org/base", base_commit)
    assert same_weights(loaded, clara)


def test_what_the_hub_refuses_is_told(hub: HubStub, base_commit: str) -> None:
    clara = new_model("org/base")
    with pytest.raises(ModelError, match="does not take the model as me/clara"):
        clara.push_to_hub("me/clara", token="wrong")
    with pytest.raises(ModelError, match="does not take the model"):
        clara.push_to_hub("not a name", token=TOKEN)
    with pytest.raises(ModelError, match="org/nothing"):
        new_model("org/nothing")
    with pytest.raises(ModelError, match="neither a model directory"):
        ClaraModel.from_pretrained("org/nothing")


def test_the_token_opens_the_base_too(hub: HubStub, base_commit: str, tmp_path: Path) -> None:
    new_model("org/base").save_pretrained(tmp_path / "model")
    hub.repos["org/gated"] = hub.repos["org/base"]
    hub.repos["org/gated"].private = True
    with pytest.raises(ModelError, match="org/gated"):
        ClaraModel.from_pretrained(tmp_path / "model", base_model="org/gated")
    loaded = ClaraModel.from_pretrained(tmp_path / "model", base_model="org/gated", token=TOKEN)
    assert loaded.config.base_revision == base_commit


def test_a_fetched_model_needs_no_network_afterwards(
    hub: HubStub, base_commit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    new_model("org/base").push_to_hub("me/clara", token=TOKEN)
    online = ClaraModel.from_pretrained("me/clara")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    hub.requests.clear()
    offline = ClaraModel.from_pretrained("me/clara")
    assert hub.requests == []
    assert offline.config == online.config
    assert same_weights(offline, online)
