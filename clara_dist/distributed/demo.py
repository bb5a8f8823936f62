"""The bundled demo: a made-up world is written to files, and from there on everything is what a user would run.

The pipeline (`clara_dist.distributed.pipeline`) trains a tiny base LLM, the compressor, the reasoner and the generator,
compresses the corpus and evaluates; then the model is served, and held-out questions are asked over HTTP.
"""

from __future__ import annotations

import json
import os
import platform
import socket
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from clara_dist import __version__
from clara_dist.client import Client
from clara_dist.config.http import AnswerReply
from clara_dist.config.pipeline import PipelineConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.data.demo_files import DemoSizes, DemoVariant, write_demo
from clara_dist.data.questions import EvalQuestion, read_questions
from clara_dist.distributed import pipeline
from clara_dist.distributed.evaluate_worker import JOINT_ROW
from clara_dist.distributed.peak_memory import PeakMemory
from clara_dist.distributed.serve_app import serving
from clara_dist.distributed.session import connect
from clara_dist.distributed.steps import Step, run_steps
from clara_dist.errors import ConfigError
from clara_dist.evaluation import score_answer
from clara_dist.evaluation.records import read_records

CONFIGS = Path(__file__).resolve().parents[2] / "jobs" / "configs"
_CONFIG_FILES: dict[DemoVariant, str] = {"one-hop": "demo.yaml", "multi-hop": "demo-multi-hop.yaml"}
N_ASKED = 40
N_SHOWN = 5
N_CLIENTS = 8


@dataclass(frozen=True)
class Asked:
    """A held-out question, answered over HTTP.

    Attributes:
        right: Whether the answer is an exact match.
        as_evaluated: Whether answer and source are those of the evaluation, which ran in another process on
            unmerged weights.
    """

    question: str
    answer: str
    right_answers: tuple[str, ...]
    right: bool
    as_evaluated: bool
    doc_id: str
    source: str
    score: float
    seconds: float


def run_demo(
    work_dir: str | Path,
    *,
    seed: int,
    variant: DemoVariant = "one-hop",
    resume: bool = False,
    keep_serving: bool = False,
    port: int | None = None,
) -> None:
    """Run the demo and print what it found.

    Args:
        work_dir: Everything is written there: data, models, store, report, ``results.json``.
        seed: Of the world and of all training.
        variant: ``multi-hop`` asks for two facts at once, which takes two documents.
        resume: Skip the steps that are finished.
        keep_serving: Leave the server up at the end, until Ctrl-C.
        port: Of the server; None takes 8000, or a free one.

    Raises:
        ConfigError: ``work_dir`` holds a demo and ``resume`` was not asked for, or the port is taken.
    """
    work_dir = Path(work_dir)
    started = time.monotonic()
    config = demo_config(work_dir, seed, variant)
    served = ServeConfig(
        model=config.evaluate.model, store=config.evaluate.store, top_k=config.evaluate.top_k, port=port or _free_port()
    )
    steps = [
        Step("world", "write the demo world", lambda: _write_world(work_dir, config, seed, variant)),
        *pipeline.steps(config, resume=resume),
    ]
    with PeakMemory() as memory, connect(num_cpus=pipeline.local_cpus(config)):
        seconds = run_steps(steps, work_dir, settings=config.to_yaml(), resume=resume)
        print("serving the model", flush=True)
        with serving(served) as url:
            asked = ask(url, config)
            show(asked)
            print(f"\n{pipeline.table(config)}")
            wall_s = time.monotonic() - started
            print(f"{wall_s:.0f} s in all, at most {memory.peak_bytes / 2**30:.2f} GiB of memory")
            results = _results(config, seed, seconds, wall_s, memory.peak_bytes, asked)
            (work_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
            if keep_serving:
                _wait_for_ctrl_c(url)
    # The bootstrap does not touch the user's shell, so the program is named by its place.
    program = os.path.relpath(Path(sys.executable).with_name("clara-dist"))
    print(f"everything is in {work_dir}. Serve it, and ask it from another terminal:")
    print(f"  {program} serve --model {served.model} --store {served.store} top_k={served.top_k}")
    print(f'  {program} ask "{asked[0].question}"')


def demo_config(work_dir: Path, seed: int, variant: DemoVariant = "one-hop") -> PipelineConfig:
    """The pipeline of ``jobs/configs/demo.yaml`` (``demo-multi-hop.yaml``), in ``work_dir`` and with ``seed``."""
    return placed_pipeline(_CONFIG_FILES[variant], work_dir, seed)


def placed_pipeline(name: str, work_dir: Path, seed: int) -> PipelineConfig:
    """A pipeline of ``jobs/configs``, with all that is below its ``run_dir`` in ``work_dir``, and with ``seed``.

    Raises:
        ConfigError: The file is not there.
    """
    path = CONFIGS / name
    if not path.is_file():
        raise ConfigError(f"{name} is not there", got=f"no {path}", hint="run this from a clone of the project")
    tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    return PipelineConfig.model_validate(_seeded(_moved(tree, tree["run_dir"], work_dir), seed))


def _write_world(work_dir: Path, config: PipelineConfig, seed: int, variant: DemoVariant) -> None:
    write_demo(work_dir / "data", seed, demo_sizes(config, variant))
    (work_dir / "pipeline.yaml").write_text(config.to_yaml(), encoding="utf-8")


def demo_sizes(config: PipelineConfig, variant: DemoVariant = "one-hop") -> DemoSizes:
    """Files as long as the stages that read them: their rows are a curriculum, in reading order."""
    stages = {stage.stage: stage for stage in (*config.prepare.stages, *config.joint.stages)}
    return DemoSizes(
        batch_size=stages["base"].batch_size,
        base_steps=stages["base"].steps,
        compression_steps=stages["compression"].steps,
        instruct_steps=stages["instruct"].steps,
        n_candidates=stages["joint"].candidates.n,
        variant=variant,
    )


def ask(url: str, config: PipelineConfig) -> list[Asked]:
    """Ask held-out questions, several clients at a time, and compare with the evaluation's answers."""
    questions = read_questions(config.evaluate.questions)[:N_ASKED]
    evaluated = _evaluated(config)
    with Client(url) as client, ThreadPoolExecutor(N_CLIENTS) as clients:
        return list(clients.map(lambda question: _ask_one(client, question, evaluated), questions))


def show(asked: Sequence[Asked]) -> None:
    """Print some questions with their answers and sources, and how many were right."""
    for one in asked[:N_SHOWN]:
        mark = "right" if one.right else f"wrong: {' or '.join(one.right_answers)}"
        print(f"\n  question  {one.question}\n  answer    {one.answer}   ({mark})")
        print(f"  source    {one.doc_id}, cosine {one.score:.3f}: {one.source}")
    n_right, n_same = sum(one.right for one in asked), sum(one.as_evaluated for one in asked)
    print(
        f"\nasked {len(asked)} held-out questions over HTTP with {N_CLIENTS} clients: {n_right} right, "
        f"{n_same} answered as in the evaluation"
    )


def _ask_one(client: Client, question: EvalQuestion, evaluated: dict[str, tuple[str, list[str]]]) -> Asked:
    started = time.monotonic()
    reply: AnswerReply = client.ask(question.question)
    return Asked(
        question=question.question,
        answer=reply.answer,
        right_answers=question.answers,
        right=score_answer(reply.answer, question.answers).exact_match == 1,
        as_evaluated=(reply.answer, [source.doc_id for source in reply.sources]) == evaluated[question.question_id],
        doc_id=reply.sources[0].doc_id,
        source=reply.sources[0].text,
        score=reply.sources[0].score,
        seconds=time.monotonic() - started,
    )


def _evaluated(config: PipelineConfig) -> dict[str, tuple[str, list[str]]]:
    """question_id -> the evaluation's answer and documents, over the whole corpus."""
    return {
        record.question_id: (record.answer or "", list(record.doc_ids))
        for record in read_records(Path(config.report_dir) / "answers.parquet")
        if record.method == JOINT_ROW and record.scope == "corpus"
    }


def _results(
    config: PipelineConfig, seed: int, seconds: dict[str, float], wall_s: float, peak_bytes: int, asked: list[Asked]
) -> dict[str, Any]:
    return {
        "seed": seed,
        "seconds": seconds,
        "wall_s": wall_s,
        "peak_memory_bytes": peak_bytes,
        "evaluation": json.loads((Path(config.report_dir) / "report.json").read_text(encoding="utf-8")),
        "asked": [asdict(one) for one in asked],
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {"clara_dist": __version__}
        | {name: version(name) for name in ("torch", "transformers", "peft", "ray", "deepspeed", "pyarrow")},
    }


def _moved(tree: Any, configured: str, work_dir: Path) -> Any:
    """The configuration with every path below the configured directory moved to ``work_dir``."""
    if isinstance(tree, dict):
        return {key: _moved(value, configured, work_dir) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_moved(value, configured, work_dir) for value in tree]
    if isinstance(tree, str) and Path(tree).parts[:1] == (configured,):
        return str(work_dir.joinpath(*Path(tree).parts[1:]))
    return tree


def _seeded(tree: Any, seed: int) -> Any:
    for run in ("prepare", "joint"):
        for stage in tree[run]["stages"]:
            stage["seed"] = seed
    return tree


def _free_port(preferred: int = 8000) -> int:
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise ConfigError("no free port on this machine")


def _wait_for_ctrl_c(url: str) -> None:
    print(f"serving at {url} until Ctrl-C", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        print("shutting down", flush=True)
