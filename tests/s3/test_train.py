"""A training run whose directory is in a bucket: killed, resumed, finished, and its model loaded from there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig
from clara_dist.errors import TrainingError
from clara_dist.model import ClaraModel
from clara_dist.store import files
from clara_dist.store.remote import RemoteStorage
from clara_dist.training.loop import run
from fault_proxy import FaultProxy


class Killed(Exception):
    """Stands for a kill: raised between two steps."""


def make_config(run_dir: str, data: Path, base: Path) -> TrainConfig:
    docs = [f"The mill was built in 18{i}0." for i in range(8)]
    rows = [{"data_type": "answer", "question": f"When? {i}", "answers": f"18{i}0", "docs": docs[i]} for i in range(8)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    model = ClaraConfig(base_model=str(base), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=2, dropout=0.1))
    stage = {"steps": 6, "batch_size": 4, "checkpoint_every": 2, "keep_checkpoints": 1, "log_every": 1}
    compression = StageConfig.model_validate(stage | {"stage": "compression", "data": str(data)})
    instruct = StageConfig.model_validate(stage | {"stage": "instruct", "data": str(data), "steps": 1})
    return TrainConfig(
        run_dir=run_dir, model=model, stages=(compression, instruct), engine=EngineConfig(kind="torch"), use_gpu=False
    )


def weights_of(model_dir: Path) -> dict[str, torch.Tensor]:
    found = sorted(model_dir.rglob("*.safetensors"))
    return {f"{p.relative_to(model_dir)}/{name}": tensor for p in found for name, tensor in load_file(p).items()}


def test_a_run_in_a_bucket_resumes_there_and_ends_as_one_on_a_disk(
    s3_url: Callable[[str], str], proxy: FaultProxy, tmp_path: Path, tiny_base_dir: Path
) -> None:
    local = run(make_config(str(tmp_path / "local"), tmp_path / "rows.jsonl", tiny_base_dir))
    url = s3_url("runs/a")
    config = make_config(url, tmp_path / "rows.jsonl", tiny_base_dir)

    def kill_at_5(event: Any) -> None:
        if event.step == 5:
            raise Killed

    with pytest.raises(Killed):
        run(config, on_progress=kill_at_5)
    with pytest.raises(TrainingError, match="holds a training run"):
        run(config)
    storage = RemoteStorage.from_url(url)
    heads = [name for name in storage.list_tree("compression/checkpoints") if name.endswith(".json")]
    assert heads == ["compression/checkpoints/step-00000004.json"]
    events: list[Any] = []
    outputs = run(config, resume=True, on_progress=events.append)
    assert any("goes on from step 4" in event.text for event in events)
    assert outputs["instruct"] == files.join(url, "instruct", "model")

    for key in ("compression", "instruct"):
        files.download(outputs[key], tmp_path / key)
        expected, got = weights_of(Path(local[key])), weights_of(tmp_path / key)
        assert expected.keys() == got.keys()
        assert [name for name in expected if not torch.equal(expected[name], got[name])] == []
    assert ClaraModel.from_pretrained(tmp_path / "instruct").config.stage == "instruct"
    # The log is there whole, from before the kill and after; TensorBoard's files of both starts too.
    with files.open_input(files.join(url, "log.jsonl")) as source:
        steps = [event["step"] for event in map(json.loads, source) if event["stage"] == "compression"]
    assert steps == [1, 2, 3, 4, 5, 5, 6]
    assert sum("tfevents" in name for name in storage.list_tree("compression/tensorboard")) == 2
    assert run(config, resume=True) == outputs


def test_a_bucket_that_refuses_a_checkpoint_ends_the_run(
    s3_url: Callable[[str], str], tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(s3_url("runs/b"), tmp_path / "rows.jsonl", tiny_base_dir)
    publish = RemoteStorage.publish

    def refuses(storage: RemoteStorage, file: str, data: bytes, *, exclusive: bool) -> None:
        if "optimizer" in file:
            raise PermissionError("access denied")
        publish(storage, file, data, exclusive=exclusive)

    monkeypatch.setattr(RemoteStorage, "publish", refuses)
    with pytest.raises(PermissionError, match="access denied"):
        run(config)
