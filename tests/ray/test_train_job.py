"""Training through Ray Train: a worker that is killed, runs that are left or never start, errors not retried."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from safetensors.torch import load_file

from clara_dist.config import ClaraConfig, EngineConfig, LoraSettings, StageConfig, TrainConfig
from clara_dist.distributed import train_job
from clara_dist.errors import ClusterError, DataError, TrainingError
from clara_dist.training.progress import Progress
from gloo_ranks import run_on_ranks

STAGE = {"stage": "compression", "steps": 8, "batch_size": 4, "checkpoint_every": 2, "log_every": 1}


def make_config(tmp_path: Path, base_dir: Path, run_name: str, **stage: Any) -> TrainConfig:
    data = tmp_path / "rows.jsonl"
    rows = [
        {"data_type": "answer", "question": f"When? {i}", "answers": f"18{i}0", "docs": f"In 18{i}0."} for i in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return TrainConfig(
        run_dir=str(tmp_path / run_name),
        model=ClaraConfig(
            base_model=str(base_dir), n_memory_tokens=3, doc_max_tokens=24, lora=LoraSettings(r=2, dropout=0.1)
        ),
        stages=(StageConfig.model_validate(STAGE | {"data": str(data), "optimizer": {"lr": 1e-2}} | stage),),
        engine=EngineConfig(kind="deepspeed"),
        workers=2,
        use_gpu=False,
        tracker="none",
    )


def live_workers() -> list[psutil.Process]:
    """The training workers below this process. Processes that end while they are listed are none of them."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if "RayTrainWorker" in " ".join(process.cmdline()) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def weights_of(model_dir: str) -> dict[str, torch.Tensor]:
    return load_file(Path(model_dir) / "generator" / "adapter_model.safetensors")


def test_a_run_with_a_killed_worker_ends_as_the_undisturbed_one(
    local_ray: None, tmp_path: Path, tiny_base_dir: Path
) -> None:
    events: list[Progress] = []
    killed: list[int] = []

    def kill_one_worker_once(event: Progress) -> None:
        events.append(event)
        if event.step is not None and event.step >= 5 and not killed:
            victim = live_workers()[-1]
            victim.kill()
            killed.append(victim.pid)

    # Long enough that it cannot be over before the driver, which reads the log four times a second, sees step 5.
    length = {"steps": 120, "optimizer": {"lr": 1e-3}}
    config = make_config(tmp_path, tiny_base_dir, "killed", **length)
    outputs = train_job.train(config, on_progress=kill_one_worker_once)
    steps = [event.step for event in events if event.step]
    restart = next(i for i, event in enumerate(events) if "a worker failed" in event.text)
    assert len(events[restart].text) < 600
    assert "goes on from step" in "\n".join(event.text for event in events[restart:])
    assert steps[-1] == 120

    undisturbed = make_config(tmp_path, tiny_base_dir, "undisturbed", **length)
    run_on_ranks([undisturbed], 2, tmp_path / "rendezvous")
    expected = weights_of(f"{undisturbed.run_dir}/compression/model")
    got = weights_of(outputs["compression"])
    assert expected.keys() == got.keys()
    assert [name for name in expected if not torch.equal(expected[name], got[name])] == []


def test_an_error_of_the_run_itself_is_raised_as_it_is_and_not_retried(
    local_ray: None, tmp_path: Path, tiny_base_dir: Path
) -> None:
    config = make_config(tmp_path, tiny_base_dir, "wrong")
    Path(config.stages[0].data).write_text('{"data_type": "answer"}\n', encoding="utf-8")
    events: list[Progress] = []
    with pytest.raises(DataError, match=r"rows\.jsonl"):
        train_job.train(config, on_progress=events.append)
    assert not any("starting again" in event.text for event in events)


def test_an_error_of_the_callback_ends_the_run_and_its_workers(
    local_ray: None, tmp_path: Path, tiny_base_dir: Path
) -> None:
    workers: list[psutil.Process] = []

    def fail(event: Progress) -> None:
        if event.step is not None:
            workers.extend(live_workers())
            raise KeyError("nobody expects this")

    with pytest.raises(KeyError, match="nobody expects"):
        train_job.train(make_config(tmp_path, tiny_base_dir, "left", steps=100_000), on_progress=fail)
    assert len(workers) == 2
    assert psutil.wait_procs(workers, timeout=60)[1] == []
    # What they held is free: a placement group of all CPUs comes about.
    group = ray.util.placement_group([{"CPU": 1}, {"CPU": 1}])
    assert group.wait(60)
    ray.util.remove_placement_group(group)


def test_workers_that_find_no_room_are_given_up_and_who_holds_it_is_named(
    local_ray: None, tmp_path: Path, tiny_base_dir: Path
) -> None:
    class Lodger:
        def ping(self) -> None:
            pass

    lodger = ray.remote(num_cpus=1)(Lodger).remote()
    ray.get(lodger.ping.remote())
    config = make_config(tmp_path, tiny_base_dir, "waiting").model_copy(update={"start_timeout_s": 5.0})
    message = r"did not start within 5 s(.|\n)*free are 1 CPU; held by the actor \S+Lodger of job \w+ \(1 CPU\)"
    with pytest.raises(ClusterError, match=message):
        train_job.train(config, on_progress=lambda event: None)
    ray.kill(lodger)


def test_workers_that_a_local_ray_cannot_hold_are_refused(local_ray: None, tmp_path: Path, tiny_base_dir: Path) -> None:
    config = make_config(tmp_path, tiny_base_dir, "large").model_copy(update={"cpus_per_worker": 1.5})
    with pytest.raises(ClusterError, match=r"no room for 2 training workers(.|\n)*2 x \(1\.5 CPU\)"):
        train_job.train(config, on_progress=lambda event: None)


def test_a_used_run_dir_is_refused_before_ray_starts(tmp_path: Path, tiny_base_dir: Path) -> None:
    config = make_config(tmp_path, tiny_base_dir, "used")
    Path(config.run_dir).mkdir()
    (Path(config.run_dir) / "run.yaml").write_text("{}", encoding="utf-8")
    with pytest.raises(TrainingError, match="holds a training run"):
        train_job.train(config, on_progress=lambda event: None)


def test_paths_are_made_absolute_and_names_of_the_hub_are_not(
    tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = make_config(tmp_path, tiny_base_dir, "x", data="rows.jsonl", output="out")
    hub = config.model_copy(update={"model": "apple/CLaRa-7B-Base", "run_dir": "runs/a"})
    absolute = train_job.absolute_paths(hub)
    assert absolute.model == "apple/CLaRa-7B-Base"
    assert absolute.run_dir == str(tmp_path / "runs/a")
    assert (absolute.stages[0].data, absolute.stages[0].output) == (str(tmp_path / "rows.jsonl"), str(tmp_path / "out"))


def test_half_written_lines_wait(tmp_path: Path, tiny_base_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config(tmp_path, tiny_base_dir, "run")
    Path(config.run_dir).mkdir()
    log = Path(config.run_dir) / "log.jsonl"
    one, two, three = (Progress(text).to_json().encode() + b"\n" for text in ("one", "two", "drei"))
    log.write_bytes(one)
    events: list[Progress] = []
    monkeypatch.setattr(train_job, "placement_groups", dict)
    follower = train_job._Follower(config, 60.0, events.append)
    log.write_bytes(one + two + three[:9])
    follower.report_new()
    log.write_bytes(one + two + three)
    follower.report_new()
    assert [event.text for event in events] == ["waiting for 2 training workers to start", "two", "drei"]
