"""One stage from its start, or from its last checkpoint, to its model directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from clara_dist.config.model import ClaraConfig
from clara_dist.config.training import EngineConfig, StageConfig
from clara_dist.data.examples import Example
from clara_dist.data.order import ExampleOrder
from clara_dist.data.prepared import open_examples
from clara_dist.errors import CheckpointError, TrainingError
from clara_dist.retrieval.sharded import ShardedSearcher
from clara_dist.training import checkpoint as checkpoints
from clara_dist.training.alarms import GradientAlarm
from clara_dist.training.background import BackgroundWriter
from clara_dist.training.batches import Batch, Totals, plan_step
from clara_dist.training.collate import count_missing, require_candidates
from clara_dist.training.collectives import Group
from clara_dist.training.data import data_folder, held_out_folder
from clara_dist.training.engine import Engine, build_engine
from clara_dist.training.held_out import HeldOut
from clara_dist.training.metrics import Interval
from clara_dist.training.optimizer import lr_factor
from clara_dist.training.progress import GRADIENT_NORM, RunLog
from clara_dist.training.run_directory import RunDirectory
from clara_dist.training.stages import BuiltStage, build_stage

# What a resumed run may do differently: where things are, how often it reports, what runs the step.
_FREE = {"data", "base_dir", "output", "store", "log_every", "engine", "gradient_accumulation"}
_FREE |= {
    "evaluation",
    "checkpoint_every",
    "keep_checkpoints",
    "keep_best",
    "best_metric",
    "best_mode",
    "load_best_at_end",
}


@dataclass
class StageRun:
    """One stage on this worker."""

    key: str
    stage: StageConfig
    engine_config: EngineConfig
    directory: RunDirectory
    group: Group
    log: RunLog
    searcher: ShardedSearcher | None = None
    _writer: BackgroundWriter = field(default_factory=BackgroundWriter)
    _evaluated: dict[int, dict[str, float]] = field(default_factory=dict)

    def train(self, source: str | ClaraConfig) -> str:
        """Train the stage, or find that it is done.

        Args:
            source: Model directory to start from, or the description of a new model.

        Returns:
            The stage's model directory.
        """
        settings: dict[str, Any] = {"stage": self.stage.model_dump(mode="json", exclude=_FREE)}
        done = self.directory.finished(self.key)
        if done is not None:
            where = f"stage {self.key} of {self.directory.location}"
            checkpoints.require_same({"stage": done["settings"]["stage"]}, settings, where)
            self.log.message(f"stage {self.key}: finished before, model in {done['output']}")
            return str(done["output"])
        examples = open_examples(data_folder(self.directory.location, self.key))
        order = ExampleOrder(len(examples), self.stage.seed, self.stage.shuffle, examples.fingerprint)
        self.log.message(f"stage {self.key}: {len(examples):,} examples from {self.stage.data}; loading the model")
        built = build_stage(self.stage, source, self.engine_config, self.group.device, self.searcher)
        if self.stage.candidates.source != "corpus":
            require_candidates(built.collate, examples, self.group)
        elif missing := count_missing(built.collate, examples, self.group):
            text = f"{missing:,} documents that examples name are not in the store; right ones count as not found"
            self.log.message(f"stage {self.key}: {text}")
        settings |= {"order": order.state()} | built.settings
        engine, start = self._start(built, settings)
        self.log.open_stage(self.key, settings, start)
        with self._writer:
            self._steps(built, engine, examples, order, start, settings)
            self._say(self._writer.join())
        return self._finish(built, engine, settings)

    def _start(self, built: BuiltStage, settings: dict[str, Any]) -> tuple[Engine, int]:
        """The engine, and the step that it starts from."""
        stage, parameters = self.stage, built.trainee.parameters
        folder = self.directory.checkpoints(self.key)
        saved = folder.newest(self.log.message)
        self._require_one_start(saved.step if saved is not None else 0, folder.url)
        if saved is not None:
            checkpoints.require_same(saved.settings, settings, folder.url)
            checkpoints.load_weights(parameters, saved.engine.weights)
        engine = build_engine(
            built.trainee, self.engine_config, stage.optimizer, stage.gradient_accumulation, self.group
        )
        n_trained = sum(parameter.numel() for parameter in parameters.values())
        self.log.message(
            f"stage {self.key}: {stage.steps} steps of {stage.batch_size} examples, {n_trained:,} trained weights"
        )
        torch.manual_seed(stage.seed + self.group.rank)
        if saved is None:
            return engine, 0
        engine.load(saved.engine)
        checkpoints.restore_rng(saved.rng, self.group)
        self.log.message(f"stage {self.key}: goes on from step {saved.step}")
        return engine, saved.step

    def _steps(
        self,
        built: BuiltStage,
        engine: Engine,
        examples: Sequence[Example],
        order: ExampleOrder,
        start: int,
        settings: dict[str, Any],
    ) -> None:
        stage, watch = self.stage, built.stopwatch
        untaught = frozenset({"query_reasoner"} if stage.ablation == "hard" else ())
        alarm = GradientAlarm(self.key, self.log.message, stage.temperature, untaught)
        held_out = self._held_out(built)
        if start == 0:
            self._evaluate(held_out, engine, 0)
        watch.lap()  # nothing of that is a step's
        interval = Interval(self.group, watch, stage.batch_size, stage.top_k)
        for step in range(start, stage.steps):
            done = step + 1
            watch.start("data")
            micro_batches = self._micro_batches(built, examples, order, step)
            totals = self._global_totals(micro_batches)
            outputs = [
                engine.accumulate(batch.to(self.group.device), totals, last=i == len(micro_batches) - 1)
                for i, batch in enumerate(micro_batches)
            ]
            interval.add(outputs, totals)
            reports = done == start + 1 or done % stage.log_every == 0 or done == stage.steps
            watch.start("other")
            norms = engine.gradient_norms() if reports else {}
            watch.start("update")
            factor = lr_factor(stage.optimizer, step, stage.steps)
            norm = engine.update(factor)
            watch.start("other")
            if not math.isfinite(norm) and self.engine_config.dtype != "float16":
                # float16 is different: its loss scaler skips such a step and tries a smaller scale.
                raise TrainingError(f"stage {self.key}: the gradient is not finite at step {done}", got=norm)
            if reports:
                metrics = interval.report() | {"lr": stage.optimizer.lr * factor}
                self._report(metrics, norms, done, alarm)
            with watch.hold("evaluate"):
                if stage.evaluation is not None and (done % stage.evaluation.every == 0 or done == stage.steps):
                    self._evaluate(held_out, engine, done)
            if done % stage.checkpoint_every == 0 and done < stage.steps:
                with watch.hold("checkpoint"):
                    self._save_checkpoint(engine, done, settings)
            self._beside(reports)

    def _report(self, metrics: dict[str, float], norms: dict[str, float], done: int, alarm: GradientAlarm) -> None:
        """Log a report; losses and gradients that no training comes back from end the run."""
        self.log.step(
            self.key, done, self.stage.steps, metrics | {f"{GRADIENT_NORM}{role}": n for role, n in norms.items()}
        )
        if not math.isfinite(metrics["loss"]):
            raise TrainingError(
                f"stage {self.key}: the loss is not finite at step {done}",
                got=metrics["loss"],
                hint="lower the learning rate, or look at the examples of this step",
            )
        alarm.check(done, norms, metrics)

    def _held_out(self, built: BuiltStage) -> HeldOut | None:
        if self.stage.held_out is None:
            return None
        examples = open_examples(held_out_folder(self.directory.location, self.key))
        return HeldOut(self.stage.held_out, examples, built.collate, self.group)

    def _evaluate(self, held_out: HeldOut | None, engine: Engine, done: int) -> None:
        if held_out is not None:
            metrics = held_out.measure(engine)
            self.log.evaluation(self.key, done, self.stage.steps, metrics)
            self._evaluated[done] = {f"eval/{name}": value for name, value in metrics.items()}

    def _micro_batches(
        self, built: BuiltStage, examples: Sequence[Example], order: ExampleOrder, step: int
    ) -> list[Batch]:
        """This worker's share of the step's examples, cut into micro-batches.

        Shares may differ by an example, after elastic workers have become fewer: means are taken over the whole batch.
        """
        indices = order.batch(step, self.stage.batch_size)[self.group.rank :: self.group.world_size]
        mine = [examples[i] for i in indices.tolist()]
        n_parts, plan = self.stage.gradient_accumulation, plan_step(self.stage, step)
        cuts = [len(mine) * part // n_parts for part in range(n_parts + 1)]
        return [built.collate(mine[start:end], plan) for start, end in pairwise(cuts)]

    def _global_totals(self, micro_batches: Sequence[Batch]) -> Totals:
        counts = [astuple(batch.totals) for batch in micro_batches]
        return Totals(*self.group.sum([sum(column) for column in zip(*counts, strict=True)]))

    def _require_one_start(self, step: int, where: str) -> None:
        """All workers go on from one step: what they read may not be the same directory, or not the same damage."""
        if any(other.item() != step for other in self.group.gather(torch.tensor([step]))):
            raise CheckpointError(
                f"workers find different checkpoints in {where}",
                got=f"step {step} in worker {self.group.rank}",
                hint="run_dir must be one directory for all nodes, on a shared file system or in an object store",
            )

    def _keep(self) -> checkpoints.Keep:
        stage = self.stage
        return checkpoints.Keep(stage.keep_checkpoints, stage.keep_best, stage.best_metric, stage.best_mode)

    def _save_checkpoint(self, engine: Engine, done: int, settings: dict[str, Any]) -> None:
        """Take a copy of everything now; the first worker writes it while training goes on."""
        state, rng = engine.state(), checkpoints.rng_state(self.group)
        if not self.group.is_first:
            return
        folder, keep = self.directory.checkpoints(self.key), self._keep()
        checkpoint = checkpoints.Checkpoint(done, settings, state, rng, self._evaluated.get(done, {}))

        def write() -> str:
            folder.save(checkpoint, keep)
            self.directory.mirror()
            return f"stage {self.key}: checkpoint of step {done} in {folder.url}"

        self._say(self._writer.submit(write))

    def _beside(self, reported: bool) -> None:
        """Hear what the background has done, and let it copy the log where that is due."""
        self._say(self._writer.poll())
        if reported and self.directory.remote and self.group.is_first and not self._writer.busy:
            self._writer.submit(partial(self.directory.mirror, at_once=False))

    def _say(self, text: str | None) -> None:
        if text is not None:
            self.log.message(text)

    def _chosen_weights(self, engine: Engine) -> dict[str, Tensor]:
        """The last weights; with ``load_best_at_end`` those that the evaluation liked best. Collective."""
        weights = engine.weights()
        if not self.group.is_first or not self.stage.load_best_at_end:
            return weights
        folder, steps, metric = self.directory.checkpoints(self.key), self.stage.steps, self.stage.best_metric
        metrics = folder.metrics() | {steps: self._evaluated.get(steps, {})}
        ranked = self._keep().ranked(metrics)
        if not ranked:
            raise TrainingError(
                f"stage {self.key}: no checkpoint has {metric}, so none is the best",
                got=f"metrics {sorted({name for found in metrics.values() for name in found})}",
                hint="evaluate at the steps of checkpoints, choose another best_metric, or unset load_best_at_end",
            )
        self.log.message(f"stage {self.key}: the best is step {ranked[0]}, {metric} {metrics[ranked[0]][metric]:.4g}")
        return weights if ranked[0] == steps else folder.load(ranked[0]).engine.weights

    def _finish(self, built: BuiltStage, engine: Engine, settings: dict[str, Any]) -> str:
        output = self.directory.output(self.key, self.stage.output)
        weights = self._chosen_weights(engine)
        if self.group.is_first:
            with self.directory.writing(output) as path:
                built.save(path, weights)
            self.directory.finish(self.key, output, settings)
            self.log.report()
        self.group.barrier()
        self.log.message(f"stage {self.key}: done, model in {output}")
        return output
