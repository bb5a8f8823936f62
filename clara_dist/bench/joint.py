"""The joint step measured: memories from the store, against compressing the candidates again at every step."""

from __future__ import annotations

import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clara_dist.bench.corpus import make_passages, write_corpus
from clara_dist.bench.joint_steps import LeanJointStep, NaiveJointStep
from clara_dist.bench.machine import describe_machine, synchronize
from clara_dist.bench.model import write_random_model
from clara_dist.config.compress import CompressConfig
from clara_dist.config.model import SYSTEM_PROMPT, Dtype
from clara_dist.config.training import EngineConfig, OptimizerConfig, StageConfig
from clara_dist.data.corpus import plan_units
from clara_dist.data.examples import Example
from clara_dist.errors import TrainingError
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.opening import open_bank
from clara_dist.training.batches import JointExamples, StepPlan
from clara_dist.training.collate import JointCollator
from clara_dist.training.collectives import Group
from clara_dist.training.engine import Trainee
from clara_dist.training.stages import TRAINED_ROLES
from clara_dist.training.steps import JointStep
from clara_dist.training.torch_engine import TorchEngine

# What fp32 may lose between two orders of summation.
LOSS_TOLERANCE, GRADIENT_TOLERANCE = 1e-5, 1e-4
_PROMPT_WEIGHT = 100
_NAMES = ("stored", "naive", "lean")


@dataclass(frozen=True)
class JointBenchSettings:
    """What to measure; see ``clara-dist bench joint --help``."""

    shape: str = "small"
    device: str = "cpu"
    batch_size: int = 4
    n_candidates: int = 20
    top_k: int = 5
    n_documents: int = 512
    repeats: int = 5
    threads: int = 1
    temperature: float = 0.02

    @property
    def dtype(self) -> Dtype:
        return "bfloat16" if self.device == "cuda" else "float32"


def run_bench(settings: JointBenchSettings, output: Path, *, profile: bool = False) -> str:
    """Measure, write the figures to ``output``, and return them as text; with ``profile`` also where our step goes.

    Raises:
        TrainingError: The three steps do not compute the same loss and gradients (in float32).
    """
    machine = describe_machine(settings.device)
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory(prefix="clara-bench-") as folder:
        bench = JointBench(settings, Path(folder))
        differences = bench.differences()
        results = {"differences": differences, "step": bench.time()}
        table = bench.profile() if profile else ""
    stored_s = {kind: results["step"]["stored"][kind]["median"] for kind in ("wall_s", "cpu_s")}
    results["ratio"] = {
        name: {kind: results["step"][name][kind]["median"] / seconds for kind, seconds in stored_s.items()}
        for name in _NAMES[1:]
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine, "settings": asdict(settings)} | results, indent=2) + "\n")
    return "\n".join([_summary(results), *([table] if table else [])])


class JointBench:
    """One random model, one store, a batch a repeat, and the three steps on them.

    Args:
        settings: What to measure.
        folder: Takes the model and the store.
    """

    def __init__(self, settings: JointBenchSettings, folder: Path) -> None:
        self.settings = settings
        passages = make_passages(settings.n_documents)
        # The tokenizer knows the words of the prompt too, or it would spell them out in three times as many tokens.
        texts = [*passages, *[f"{SYSTEM_PROMPT} Background: Question:"] * _PROMPT_WEIGHT]
        model = write_random_model(folder, settings.shape, texts, dtype=settings.dtype, device=settings.device)
        write_corpus(folder / "corpus.jsonl", passages)
        _compress(folder, model, settings)
        self.clara = clara = ClaraModel.from_pretrained(model, dtype=settings.dtype, device=settings.device)
        clara.set_trainable(TRAINED_ROLES["joint"], memory_embeddings=False)
        clara.train()
        self.bank = open_bank(str(folder / "store"), clara.fingerprint_fields(), device=settings.device)
        # Read and tokenised before the clock runs.
        documents = self.bank.store.documents(range(settings.n_documents))
        self._ids = [text.ids for text in clara.tokenizer.encode_texts([document.text for document in documents])]
        self.batches = [self._batch(seed, passages) for seed in range(settings.repeats + 1)]
        stage = StageConfig(
            stage="joint",
            data="",
            store=self.bank.store.url,
            steps=1,
            top_k=settings.top_k,
            temperature=settings.temperature,
            estimator="sequential",
        )
        self._stored = JointStep(clara, self.bank, stage)

    def steps(self, *, rounded: bool) -> dict[str, nn.Module]:
        """The three steps; ``rounded`` as in `NaiveJointStep`."""
        arguments = (self.clara, self._ids, self.settings.top_k, self.settings.temperature)
        baselines = NaiveJointStep(*arguments, rounded=rounded), LeanJointStep(*arguments, rounded=rounded)
        return dict(zip(_NAMES, (self._stored, *baselines), strict=True))

    def differences(self) -> dict[str, Any]:
        """How far the baselines' loss and gradients are from those of our step, on one batch.

        Raises:
            TrainingError: Further than the tolerances, in float32.
        """
        found: dict[str, Any] = {}
        for title, rounded in {"memories_as_stored": True, "memories_in_fp32": False}.items():
            results = {name: self._loss_and_gradients(step) for name, step in self.steps(rounded=rounded).items()}
            loss, gradients = results["stored"]
            found[title] = {
                name: {"loss": abs(results[name][0] - loss)}
                | {f"gradient/{role}": _relative(results[name][1][role], gradients[role]) for role in gradients}
                for name in _NAMES[1:]
            }
            found["loss"] = loss
        if self.settings.dtype == "float32":
            _require_same(found["memories_as_stored"])
        return found

    def time(self) -> dict[str, Any]:
        """Seconds of forward, backward and update of each step: median, lowest and highest, wall and CPU.

        Of our own also the median of each part (`clara_dist.training.stopwatch`).
        """
        engine = {name: self._engine(step) for name, step in self.steps(rounded=True).items()}
        wall_s: dict[str, list[float]] = {name: [] for name in _NAMES}
        cpu_s: dict[str, list[float]] = {name: [] for name in _NAMES}
        parts_s: dict[str, list[float]] = {}
        watch = self._stored.stopwatch
        # The steps take turns, so that a machine that is slower for a while is so for all of them. The first warms up.
        for (number, batch), name in itertools.product(enumerate(self.batches), _NAMES):
            synchronize(self.settings.device)
            watch.start("other")
            watch.lap()
            started, cpu_started = time.perf_counter(), time.process_time()
            engine[name].accumulate(batch, batch.totals, last=True)
            watch.start("update")
            engine[name].update(1.0)
            synchronize(self.settings.device)
            if number and name == "stored":
                for part, seconds in watch.lap().items():
                    parts_s.setdefault(part, []).append(seconds)
            if number:
                wall_s[name].append(time.perf_counter() - started)
                cpu_s[name].append(time.process_time() - cpu_started)
        found: dict[str, Any] = {
            name: {"wall_s": _spread(wall_s[name]), "cpu_s": _spread(cpu_s[name])} for name in _NAMES
        }
        found["stored"]["parts_s"] = {part: statistics.median(seconds) for part, seconds in parts_s.items()}
        return found

    def profile(self) -> str:
        """Where our step's time goes, by torch.profiler."""
        engine = self._engine(self._stored)
        cuda = [torch.profiler.ProfilerActivity.CUDA] if self.settings.device == "cuda" else []
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU, *cuda]) as profiler:
            for batch in self.batches[1:]:
                engine.accumulate(batch, batch.totals, last=True)
                engine.update(1.0)
        order = "self_cuda_time_total" if cuda else "self_cpu_time_total"
        return str(profiler.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=40))

    def _engine(self, step: nn.Module) -> TorchEngine:
        clara = self.clara
        trainee = Trainee(step, clara.trainable_parameters(), lambda name: str(clara.role_of(name)))
        # A rate of next to nothing: what is updated must not change what is measured next.
        config = EngineConfig(kind="torch", dtype=self.settings.dtype)
        return TorchEngine(trainee, config, OptimizerConfig(lr=1e-12), Group(0, 1, clara.device))

    def _loss_and_gradients(self, step: nn.Module) -> tuple[float, dict[str, Tensor]]:
        parameters = self.clara.trainable_parameters()
        batch = self.batches[0]
        loss = step(batch, batch.totals).loss
        gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        by_role: dict[str, list[Tensor]] = {}
        for (name, parameter), gradient in zip(parameters.items(), gradients, strict=True):
            whole = torch.zeros_like(parameter) if gradient is None else gradient
            by_role.setdefault(str(self.clara.role_of(name)), []).append(whole.flatten())
        return float(loss.detach()), {role: torch.cat(parts) for role, parts in by_role.items()}

    def _batch(self, seed: int, passages: Sequence[str]) -> JointExamples:
        """Questions and answers of as many words as people use, each with candidates of its own."""
        generator, settings = random.Random(seed), self.settings
        examples = []
        for _ in range(settings.batch_size):
            rows = generator.sample(range(settings.n_documents), settings.n_candidates)
            words = " ".join(passages[rows[0]].split() * 3).split()
            question, answer = " ".join(words[:12]) + "?", " ".join(words[12 : 12 + generator.randint(1, 5)])
            examples.append(Example(question, answer, candidate_ids=tuple(f"p{row}" for row in rows)))
        plan = StepPlan(n_slots=settings.top_k, from_corpus=False)
        return JointCollator(self.clara.tokenizer, self.bank)(examples, plan).to(self.clara.device)


def _compress(folder: Path, model: Path, settings: JointBenchSettings) -> None:
    from clara_dist.distributed import compress_job  # nothing else here needs Ray, and this does not start it
    from clara_dist.distributed.actor_pool import map_serially
    from clara_dist.distributed.compress_workers import identify_model

    device = "cuda" if settings.device == "cuda" else "cpu"
    corpus = (str(folder / "corpus.jsonl"),)
    job = CompressConfig(
        corpus=corpus, model=str(model), store=str(folder / "store"), device=device, dtype=settings.dtype
    )
    units = plan_units(corpus, rows_per_unit=settings.n_documents)
    compress_job.run(job, units, scan_on=map_serially, compress_on=map_serially, identify=lambda: identify_model(job))


def _relative(other: Tensor, own: Tensor) -> float:
    return float((other - own).norm() / own.norm())


def _require_same(found: Mapping[str, Mapping[str, float]]) -> None:
    for name, differences in found.items():
        for what, size in differences.items():
            allowed = LOSS_TOLERANCE if what == "loss" else GRADIENT_TOLERANCE
            if not size <= allowed:
                raise TrainingError(f"the {name} step differs from ours: {what}", got=size, expected=f"<= {allowed}")


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": statistics.median(seconds), "lowest": min(seconds), "highest": max(seconds)}


def _summary(results: Mapping[str, Any]) -> str:
    titles = {"stored": "memories from the store", "naive": "naive, compressing", "lean": "lean, compressing"}
    lines = ["one step, seconds              wall    CPU"]
    for name, title in titles.items():
        found = results["step"][name]
        line = f"{title:26}{found['wall_s']['median']:9.3f}{found['cpu_s']['median']:7.3f}"
        if name in results["ratio"]:
            ratio = results["ratio"][name]
            differences = results["differences"]["memories_as_stored"][name]
            largest = max(size for what, size in differences.items() if what != "loss")
            line += f"   {ratio['wall_s']:.1f} ({ratio['cpu_s']:.1f}) times as long; "
            line += f"loss differs by {differences['loss']:.1e}, gradients by {largest:.1e}"
        lines.append(line)
    parts_s = results["step"]["stored"]["parts_s"]
    whole_s = sum(parts_s.values())
    shares = [f"{part} {seconds / whole_s:.0%}" for part, seconds in parts_s.items() if seconds >= 0.01 * whole_s]
    lines.append(f"of our step: {', '.join(shares)}")
    return "\n".join(lines)
