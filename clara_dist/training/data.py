"""The data of a run: read, checked, measured and laid out once, before any worker starts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict

from clara_dist.config.model import ClaraConfig
from clara_dist.config.training import StageConfig, TrainConfig
from clara_dist.data.examples import ExampleRow, iter_example_rows
from clara_dist.data.prepared import PreparedExamples, prepare_examples
from clara_dist.errors import ModelError
from clara_dist.model import ClaraTokenizer
from clara_dist.model.base import load_tokenizer
from clara_dist.model.files import read_config
from clara_dist.model.hub import model_directory
from clara_dist.store import files
from clara_dist.training.lengths import DataLengths, LengthMeter, Spread
from clara_dist.training.run_directory import RunDirectory

_REPORT_ROWS = 100_000  # about ten seconds


def data_folder(run_dir: str, key: str) -> str:
    """Where the prepared examples of a stage are."""
    return files.join(run_dir, key, "data")


def held_out_folder(run_dir: str, key: str) -> str:
    """Where the prepared examples of a stage's evaluation are."""
    return files.join(run_dir, key, "held-out")


def stage_lengths(stage: StageConfig, tokenizer: ClaraTokenizer | None) -> DataLengths:
    """Read, check and measure a stage's data, and write nothing.

    Args:
        stage: The stage.
        tokenizer: See `run_tokenizer`; None: rows are checked and counted, tokens are not.

    Raises:
        DataError: A row is bad, does not fit, or too many answers would be cut; names place and reason.
    """
    meter = LengthMeter(stage, tokenizer)
    for place, row in iter_example_rows(
        stage.data, stage.stage, layout=stage.format, max_documents=stage.max_documents
    ):
        meter.add(place, row)
    return meter.result()


def check_run(config: TrainConfig) -> Iterator[tuple[str, StageConfig, DataLengths]]:
    """Check the data of all stages, what is held out included; yields its name and what was measured.

    Raises:
        DataError: As `stage_lengths`.
    """
    tokenizer = run_tokenizer(config)
    for key, stage in zip(RunDirectory.stage_keys(config), config.stages, strict=True):
        yield key, stage, stage_lengths(stage, tokenizer)
        if stage.held_out is not None:
            yield f"{key}, held out", stage.held_out, stage_lengths(stage.held_out, tokenizer)


def prepare_run(config: TrainConfig, report: Callable[[str], None]) -> None:
    """Check the data of all unfinished stages, and lay it out in the run directory for the workers.

    What was prepared before and has not been touched since costs a look at the files' sizes and times.

    Args:
        config: The run.
        report: Gets a line for each stage.

    Raises:
        DataError: As `stage_lengths`.
    """
    directory, tokenizer = RunDirectory(config.run_dir), run_tokenizer(config)
    for key, stage in zip(RunDirectory.stage_keys(config), config.stages, strict=True):
        if directory.finished(key) is None:
            examples = prepare_stage(stage, data_folder(config.run_dir, key), tokenizer, report)
            report(f"stage {key}: {summary(stage, DataLengths.from_report(examples.report))}")
            if stage.held_out is not None:
                prepare_stage(stage.held_out, held_out_folder(config.run_dir, key), tokenizer, report)


def prepare_stage(
    stage: StageConfig, folder: str, tokenizer: ClaraTokenizer | None, report: Callable[[str], None]
) -> PreparedExamples:
    """`prepare_examples`, checked and measured; reports from time to time how far it is."""
    meter = LengthMeter(stage, tokenizer)

    def observe(place: str, row: ExampleRow | None) -> None:
        meter.add(place, row)
        if meter.rows % _REPORT_ROWS == 0:
            report(f"reading {stage.data}: {meter.rows:,} rows")

    verdict = stage.model_dump(mode="json", include={"top_k", "max_truncated_answers"})
    settings = {
        **verdict,
        "needs_candidates": stage.stage == "joint" and stage.candidates.source != "corpus",
        "tokenizer": None if tokenizer is None else tokenizer.fingerprint(),
        "model": None if tokenizer is None else tokenizer.config.model_dump(mode="json", exclude={"base_model"}),
    }
    return prepare_examples(stage, folder, settings=settings, observe=observe, report=lambda: asdict(meter.result()))


def run_tokenizer(config: TrainConfig) -> ClaraTokenizer | None:
    """The tokenizer of a run's model, without its weights; None if the model is not there (yet).

    All stages share it: they train one base LLM.
    """
    model = config.model
    if isinstance(model, ClaraConfig):
        first = config.stages[0]
        if first.stage == "base" and first.base_dir is not None:
            return ClaraTokenizer(load_tokenizer(first.base_dir), model)
        return ClaraTokenizer(load_tokenizer(model.base_model, revision=model.base_revision), model)
    try:
        path = model_directory(model)
        return ClaraTokenizer(load_tokenizer(str(path)), read_config(path)) if path.is_dir() else None
    except ModelError:
        return None  # the workers, who need it, say what is wrong


def summary(stage: StageConfig, lengths: DataLengths) -> str:
    """One line on a stage's data."""
    parts = [f"{lengths.examples:,} examples from {stage.data}"]
    if lengths.prompt is not None:
        parts.append(f"prompts of {lengths.prompt.mean:.0f} tokens on average, {lengths.prompt.max} at most")
    if lengths.cut_answers:
        parts.append(f"{lengths.cut_answers:,} answers cut")
    if lengths.left_out:
        parts.append(f"{lengths.left_out:,} unanswerable questions left out")
    return "; ".join(parts)


def table(key: str, stage: StageConfig, lengths: DataLengths) -> str:
    """What was measured, for people."""
    measured = "all of them measured" if lengths.every == 1 else f"one in {lengths.every} measured"
    lines = [
        f"stage {key}: {stage.data}",
        f"  {lengths.rows:,} rows, {lengths.examples:,} examples ({measured})",
        f"  {'':<12}{'n':>10}{'min':>8}{'mean':>9}{'p50':>8}{'p95':>8}{'p99':>8}{'max':>8}",
    ]
    of_row = "candidates" if stage.stage == "joint" else "documents"
    names = {
        "question": "question",
        "answer": "answer",
        "prompt": "prompt",
        "document": "document",
        "documents": of_row,
    }
    for name, shown in names.items():
        spread: Spread | None = getattr(lengths, name)
        if spread is not None:
            numbers = f"{spread.p50:>8.0f}{spread.p95:>8.0f}{spread.p99:>8.0f}{spread.max:>8}"
            lines.append(f"  {shown:<12}{spread.n:>10,}{spread.min:>8}{spread.mean:>9.1f}{numbers}")
    if lengths.prompt is None:
        lines.append("  no tokens counted: the model is not there yet")
    else:
        lines.append(f"  answers cut: {lengths.cut_answers:,} of {lengths.examples:,}")
    if lengths.document is not None:
        lines.append(f"  documents cut: {lengths.cut_documents:,} of {lengths.document.n:,} measured")
    if stage.stage == "joint":
        lines.append(f"  without a known right candidate: {lengths.without_positives:,} of {lengths.rows:,} rows")
    if lengths.left_out:
        lines.append(f"  left out, unanswerable: {lengths.left_out:,}")
    return "\n".join(lines)
