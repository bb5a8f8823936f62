from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from clara_dist.errors import CheckpointError
from clara_dist.store.storage import LocalStorage
from clara_dist.training.checkpoint import Checkpoint, CheckpointFolder, Keep, load_weights, require_same
from clara_dist.training.engine import EngineState

LAST = Keep(last=1, best=0, metric="eval/loss", mode="min")


def checkpoint(step: int, **metrics: float) -> Checkpoint:
    states = {"a.weight": {"exp_avg": torch.arange(3.0), "step": torch.tensor(float(step))}, "b": {}}
    weights = {"a.weight": torch.ones(3), "b": torch.zeros(1)}
    engine = EngineState(weights, states)
    named = {f"eval/{name}": value for name, value in metrics.items()}
    return Checkpoint(step, {"stage": {"seed": 1}}, engine, {"0/cpu": torch.get_rng_state()}, named)


@pytest.fixture
def folder(tmp_path: Path) -> CheckpointFolder:
    return CheckpointFolder(LocalStorage(tmp_path), "checkpoints")


def names(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "checkpoints").iterdir())


def files_of(*steps: int) -> list[str]:
    parts = ("json", "optimizer.safetensors", "rng.safetensors", "weights.safetensors")
    return [f"step-{step:08d}.{part}" for step in steps for part in parts]


def test_what_is_saved_is_what_is_loaded(folder: CheckpointFolder) -> None:
    saved = checkpoint(7, loss=0.5)
    folder.save(saved, LAST)
    loaded = folder.load(7)
    assert (loaded.step, loaded.settings, loaded.metrics) == (7, {"stage": {"seed": 1}}, {"eval/loss": 0.5})
    torch.testing.assert_close(loaded.engine.weights, saved.engine.weights, rtol=0, atol=0)
    torch.testing.assert_close(loaded.engine.optimizer, saved.engine.optimizer, rtol=0, atol=0)
    assert torch.equal(loaded.rng["0/cpu"], saved.rng["0/cpu"])


@pytest.mark.parametrize("n_written", range(4))
def test_a_writer_that_dies_leaves_the_last_checkpoint(
    folder: CheckpointFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_written: int
) -> None:
    folder.save(checkpoint(1), LAST)
    publish, written = LocalStorage.publish, []

    def dies(storage: LocalStorage, file: str, data: bytes, *, exclusive: bool) -> None:
        if len(written) == n_written:
            raise KeyboardInterrupt
        written.append(file)
        publish(storage, file, data, exclusive=exclusive)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "publish", dies)
        with pytest.raises(KeyboardInterrupt):
            folder.save(checkpoint(2), LAST)
    assert folder.steps() == [1]
    assert folder.newest(pytest.fail).step == 1  # type: ignore[union-attr]
    # The resumed run writes the same step again, and leaves nothing of the half one.
    (tmp_path / "checkpoints" / ".step-00000002.weights.safetensors.0123.tmp").write_bytes(b"half")
    folder.save(checkpoint(3), LAST)
    assert names(tmp_path) == files_of(3)


def test_the_last_and_the_best_are_kept(folder: CheckpointFolder, tmp_path: Path) -> None:
    keep = Keep(last=2, best=2, metric="eval/recall@1", mode="max")
    recalls = {1: 0.2, 2: 0.9, 3: None, 4: 0.9, 5: float("nan"), 6: 0.1, 7: 0.3}
    for step, recall in recalls.items():
        folder.save(checkpoint(step, **({} if recall is None else {"recall@1": recall})), keep)
    assert folder.steps() == [2, 4, 6, 7]
    assert names(tmp_path) == files_of(2, 4, 6, 7)
    assert keep.ranked(folder.metrics()) == [4, 2, 7, 6]  # of equals the later
    assert Keep(1, 1, "eval/recall@1", "min").chosen(folder.metrics()) == {6, 7}
    assert Keep(1, 1, "eval/loss", "min").chosen(folder.metrics()) == {7}


@pytest.mark.parametrize("damage", ["short", "flipped", "missing", "empty"])
@pytest.mark.parametrize("part", ["weights.safetensors", "optimizer.safetensors", "rng.safetensors", "json"])
def test_a_damaged_checkpoint_is_passed_over_with_a_word(
    folder: CheckpointFolder, tmp_path: Path, part: str, damage: str
) -> None:
    keep = Keep(last=2, best=0, metric="eval/loss", mode="min")
    folder.save(checkpoint(1), keep)
    folder.save(checkpoint(2), keep)
    path = tmp_path / "checkpoints" / f"step-00000002.{part}"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]  # in a JSON: no bracket
        path.write_bytes({"short": data[:-3], "flipped": flipped, "empty": b""}[damage])
    said: list[str] = []
    newest = folder.newest(said.append)
    assert newest is not None
    assert newest.step == 1
    if (part, damage) == ("json", "missing"):
        assert said == []  # it was never there
    else:
        assert len(said) == 1
        assert said[0].startswith(f"WARNING the checkpoint of step 2 in {tmp_path}/checkpoints is damaged: ")
    folder.save(checkpoint(3), keep)
    assert folder.load(3).step == 3


def test_where_all_are_damaged_nothing_is_begun_anew(folder: CheckpointFolder, tmp_path: Path) -> None:
    assert folder.newest(pytest.fail) is None
    folder.save(checkpoint(1), LAST)
    (tmp_path / "checkpoints" / "step-00000001.weights.safetensors").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*checkpoints can be read"):
        folder.newest(lambda line: None)


def test_settings_that_differ_are_named_with_both_values() -> None:
    with pytest.raises(CheckpointError) as caught:
        require_same({"stage": {"seed": 1, "lr": 0.1}}, {"stage": {"seed": 2, "lr": 0.1}, "store": "x"}, "run")
    assert caught.value.got == "stage.seed: 1 there, 2 here; store: absent there, x here"


def test_weights_of_another_shape_are_refused() -> None:
    with pytest.raises(CheckpointError, match="do not fit"):
        load_weights({"w": nn.Parameter(torch.zeros(2))}, {"w": torch.zeros(3)})
