"""The API for people, against the merged roles of jobs and server."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clara_dist import Clara
from clara_dist.errors import (
    DataError,
    FilterError,
    FingerprintMismatchError,
    ModelError,
    RetrievalError,
    StoreError,
    TokenizationError,
)
from clara_dist.inference import api
from clara_dist.inference.answering import LocalPipeline
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.generator import Generator
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model import ClaraModel
from clara_dist.store import MemoryStore, StoreSchema, commit, write_shard
from clara_dist.store.manifest import read_manifest
from clara_dist.store.storage import open_storage

ROOT = Path(__file__).resolve().parents[3]
TEXTS = [
    "The lighthouse at Cape Merrow was built in 1871.",
    "Rain gauges are emptied at nine in the morning.",
    "An engineer, Ada Tolliver.",
    "The island",
]
QUESTIONS = ["Who built the lighthouse?", "rain gauges"]


@pytest.fixture
def clara(tiny_clara_dir: Path) -> Clara:
    return Clara.from_pretrained(tiny_clara_dir)


@pytest.fixture(scope="module")
def store(tiny_clara_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("api") / "store"
    documents = [
        {"doc_id": f"d{i}", "title": f"T{i}", "text": text, "metadata": {"kind": "ab"[i % 2], "year": 1870 + i}}
        for i, text in enumerate(TEXTS)
    ]
    columns = {"kind": "string", "year": "int64"}
    Clara.from_pretrained(tiny_clara_dir).build_store(documents, path, metadata_columns=columns)
    return str(path)


def test_one_object_gives_the_numbers_of_the_merged_roles(clara: Clara, store: str, tiny_clara_dir: Path) -> None:
    memory_SMD = clara.compress(TEXTS)
    query_BMD = clara.reason(QUESTIONS)
    answers = clara.answer(QUESTIONS, store, top_k=2, max_tokens=6)
    assert memory_SMD.shape == (4, 3, 32)
    assert memory_SMD.dtype == torch.float16
    assert query_BMD.shape == (2, 3, 32)
    assert query_BMD.dtype == torch.float32

    merged = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir)).compress([("", text) for text in TEXTS])
    # Measured before rounding: 6.1e-6 for memories, 3.3e-6 for queries. float16 may round to neighbours, 2^-9 apart.
    np.testing.assert_allclose(memory_SMD.numpy().astype(np.float32), merged.memory_SMD, atol=2**-9)
    fused = ClaraModel.from_pretrained(tiny_clara_dir)
    fused.fuse_for_serving()
    np.testing.assert_allclose(query_BMD.flatten(1).numpy(), Reasoner(fused).query(QUESTIONS), atol=1e-5)
    opened = MemoryStore.open(store)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        rows = opened.rows_of([source.doc_id for source in answer.sources])
        memory_1KMD = torch.from_numpy(opened.take_memory(rows[None]))
        assert answer.text == Generator(fused).generate([question], memory_1KMD, max_tokens=6)[0].text


def test_nothing_is_merged_by_use(clara: Clara, store: str) -> None:
    before = {name: tensor.clone() for name, tensor in clara.state_dict().items()}
    first = clara.answer(QUESTIONS, store, top_k=2, max_tokens=4)
    clara.compress(TEXTS)
    clara.explain(QUESTIONS[0], store)
    assert [a.text for a in clara.answer(QUESTIONS, store, top_k=2, max_tokens=4)] == [a.text for a in first]
    after = clara.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_sources_are_the_nearest_documents(clara: Clara, store: str) -> None:
    memory_SX = clara.compress(TEXTS).float().flatten(1)
    for query_MD, sources in zip(clara.reason(QUESTIONS), clara.retrieve(QUESTIONS, store, top_k=3), strict=True):
        scores_S = torch.cosine_similarity(query_MD.flatten()[None], memory_SX)
        best = scores_S.argsort(descending=True)[:3].tolist()
        assert [source.doc_id for source in sources] == [f"d{row}" for row in best]
        assert [(s.parent_id, s.title, s.text) for s in sources] == [(f"d{i}", f"T{i}", TEXTS[i]) for i in best]
        np.testing.assert_allclose([source.score for source in sources], scores_S[best], atol=1e-3)


def test_where_takes_a_value_or_several(clara: Clara, store: str) -> None:
    def found(top_k: int, **where: Any) -> set[str]:
        return {source.doc_id for source in clara.retrieve(QUESTIONS[:1], store, top_k, where)[0]}

    assert found(2, kind="a") == {"d0", "d2"}
    assert found(2, year=[1871, 1873]) == {"d1", "d3"}
    assert found(1, kind="a", year=(1871, 1872)) == {"d2"}
    assert {s.doc_id for s in clara.answer(QUESTIONS[:1], store, 1, 2, where={"year": 1873})[0].sources} == {"d3"}
    assert clara.explain(QUESTIONS[0], store, where="year = 1871").source.doc_id == "d1"
    expression = "year > 1870 and not (kind = 'a' or year >= 1873)"
    assert [source.doc_id for source in clara.retrieve(QUESTIONS[:1], store, 1, expression)[0]] == ["d1"]
    with pytest.raises(FilterError, match="at character 1"):
        clara.retrieve(QUESTIONS[:1], store, 1, "")
    with pytest.raises(RetrievalError):
        found(3, kind="a")
    with pytest.raises(StoreError, match="colour"):
        found(1, colour="red")


def test_between_training_steps(clara: Clara, store: str) -> None:
    clara.set_trainable(["query_reasoner", "generator"], memory_embeddings=False)
    clara.train()
    before = clara.reason(QUESTIONS)
    optimizer = torch.optim.AdamW(clara.trainable_parameters().values(), lr=0.1)
    for parameter in clara.trainable_parameters().values():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    answers = clara.answer(QUESTIONS, store, top_k=1, max_tokens=3)
    assert len(answers) == 2
    assert (clara.reason(QUESTIONS) - before).abs().max() > 0.1
    assert clara.training
    assert all(parameter.requires_grad for parameter in clara.trainable_parameters().values())


@pytest.mark.parametrize("counted", [True, False], ids=["by torch", "behind its back"])
def test_a_compressor_that_was_trained_on_is_noticed(clara: Clara, store: str, counted: bool) -> None:
    clara.set_trainable(["compressor"], memory_embeddings=True)
    clara.retrieve(QUESTIONS, store, 1)
    with torch.no_grad():
        (clara.memory_rows if counted else clara.memory_rows.data).add_(1)
    with pytest.raises(FingerprintMismatchError, match="memory_embeddings"):
        clara.retrieve(QUESTIONS, store, 1)


def test_a_store_is_opened_once_a_version(clara: Clara, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store"
    clara.build_store(TEXTS[:2], path)
    opened = []
    monkeypatch.setattr(api, "LocalPipeline", lambda *args: opened.append(1) or LocalPipeline(*args))
    for _ in range(3):
        assert {s.doc_id for s in clara.retrieve(QUESTIONS, path, 2)[0]} == {"0", "1"}
    assert len(opened) == 1
    manifest = read_manifest(open_storage(path))
    more = clara.compress(["Another island"])
    table = StoreSchema(3, 32).to_table(
        doc_ids=["new"], titles=[""], texts=["Another island"], metadata=[{}], memory_SMD=more.numpy(), n_tokens=[3],
        truncated=[False],
    )  # fmt: skip
    info = write_shard(path, table, "more")
    commit(path, manifest.schema, manifest.fingerprint, [*manifest.shards, info], parent=manifest.version)
    assert {s.doc_id for s in clara.retrieve(QUESTIONS, path, 3)[0]} == {"0", "1", "new"}
    assert len(opened) == 2
    # An open store stays at its version.
    with pytest.raises(RetrievalError):
        clara.retrieve(QUESTIONS, MemoryStore.open(path, manifest.version), 3)


def test_a_store_that_was_made_anew_is_another_one(clara: Clara, tmp_path: Path) -> None:
    path = tmp_path / "store"
    clara.build_store(TEXTS[:2], path)
    clara.retrieve(QUESTIONS, path, 2)
    shutil.rmtree(path)
    clara.build_store(TEXTS[2:], path)
    assert {source.text for source in clara.retrieve(QUESTIONS, path, 2)[0]} == set(TEXTS[2:])


def test_memories_beyond_float16_are_an_error(clara: Clara) -> None:
    with torch.no_grad():
        clara.base.base_model.norm.weight.mul_(1e6)
    with pytest.raises(ModelError, match=r"(?s)float16.*2 of 2, first: text 0, 'The island'.*65,504"):
        clara.compress(["The island", "gauges"])


def test_one_where_several_are_asked_for_is_told(clara: Clara, store: str, tmp_path: Path) -> None:
    for one in ("The island", {"text": "The island"}):
        with pytest.raises(DataError, match=r"(?s)must be a list.*The island.*brackets"):
            clara.build_store(one, tmp_path / "one")
    assert not (tmp_path / "one").exists()
    with pytest.raises(ModelError, match="explain takes one question"):
        clara.explain(QUESTIONS, store)  # type: ignore[arg-type]


def test_a_long_text_is_an_error_unless_it_may_be_cut(clara: Clara, tmp_path: Path) -> None:
    long = " ".join(TEXTS)
    with pytest.raises(TokenizationError, match=r"(?s)1 of 2 texts.*text 1: 'The lighthouse.*at most 24 tokens"):
        clara.compress(["short", long])
    cut = clara.compress(["short", long], truncate=True)
    assert torch.equal(cut[1], clara.compress([long + " and more"], truncate=True)[0])
    store = clara.build_store(["short", {"doc_id": "long", "text": long}], tmp_path / "store", overlap_tokens=4)
    rows = store.documents(range(len(store)))
    assert len(rows) >= 3
    assert {row.parent_id for row in rows} == {"0", "long"}
    assert [row.doc_id for row in rows[1:]] == [f"long#{i}" for i in range(1, len(rows))]
    assert not any(row.truncated for row in rows)
    expected = clara.compress([row.text for row in rows])
    np.testing.assert_allclose(store.take_memory(np.arange(len(rows))), expected.numpy(), atol=2**-9)


def test_what_no_store_is_made_of(clara: Clara, store: str, tmp_path: Path) -> None:
    for documents, message in [
        ([], "no documents"),
        (["fine", "  "], "document 1 cannot be used"),
        ([{"id": "x", "text": "t"}], r"unknown fields \['id'\]"),
    ]:
        with pytest.raises(DataError, match=message):
            clara.build_store(documents, tmp_path / "none")
    with pytest.raises(StoreError):
        clara.build_store(TEXTS, store)
    with pytest.raises(StoreError, match="doc_id"):
        clara.build_store([{"doc_id": "x", "text": "a"}, {"doc_id": "x", "text": "b"}], tmp_path / "twice")


def test_one_string_is_no_list_of_letters(clara: Clara, store: str) -> None:
    for call in (clara.compress, clara.reason):
        with pytest.raises(ModelError, match="must be a list"):
            call("Who?")
    with pytest.raises(ModelError, match="must be a list"):
        clara.answer("Who?", store)
    assert clara.reason([]).shape == (0, 3, 32)
    assert clara.answer([], store) == []


def run_example(code: str, directory: Path, model: Path, store: str) -> str:
    """Run a block of the README where its model and store stand; what it prints."""
    (directory / "runs/joint/joint").mkdir(parents=True)
    (directory / "stores").mkdir()
    (directory / "runs/joint/joint/model").symlink_to(model)
    (directory / "stores/wiki").symlink_to(store)
    # Neither Ray nor anything of it may be needed: an import of it fails.
    script = f"import sys\nsys.modules['ray'] = None\n{code}\nassert not any(m.startswith('ray.') for m in sys.modules)"
    environment = {"PYTHONPATH": str(ROOT), "PATH": "", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_cluster_is_needed(store: str, tiny_clara_dir: Path, tmp_path: Path) -> None:
    code = """
from clara_dist import Clara
clara = Clara.from_pretrained("runs/joint/joint/model")
clara.build_store(["Rain gauges", "The island"], "stores/mine")
print(clara.answer(["rain"], "stores/mine", top_k=1, max_tokens=2)[0].sources[0].doc_id)
print(clara.explain("rain", "stores/wiki").source.doc_id, clara.compress(["rain"]).shape)
"""
    printed = run_example(code, tmp_path, tiny_clara_dir, store).split()
    assert printed[0] in {"0", "1"}
    assert printed[1] in {f"d{i}" for i in range(len(TEXTS))}


def test_the_readmes_example_runs(store: str, tiny_clara_dir: Path, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for number, code in enumerate(re.findall(r"^```python\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)):
        if "from openai" in code:
            continue  # tests/serve/test_server.py has a server for it
        assert run_example(code, tmp_path / str(number), tiny_clara_dir, store)
