"""The command line, ``clara-dist``: each command reads its options and calls one function of the package.

Nothing heavy is imported before a command runs, so ``--help`` answers at once.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from clara_dist import __version__
from clara_dist.errors import ClaraError

if TYPE_CHECKING:
    from clara_dist.config import Config

ConfigT = TypeVar("ConfigT", bound="Config")

app = typer.Typer(
    help="CLaRa on a Ray cluster: compress a corpus, train retrieval and generation jointly, serve the answers.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
store_app = typer.Typer(help="Look at memory stores.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file with the settings; flags win over it.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Any setting by its dotted name; wins over flags.")
]
ModelOption = Annotated[str | None, typer.Option("--model", help="Model directory.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Memory store: a directory or a URL.")]


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line: exit code 0, 1 for an error, 2 for wrong usage, 130 for Ctrl-C.

    Args:
        args: What stands behind the program's name; None takes it from the process.
    """
    try:
        app(args=args, prog_name="clara-dist")
    except ClaraError as error:
        _fail(str(error))
    except Exception as error:
        _fail(f"unexpected {type(error).__name__}: {error}\n  to do: run `clara-dist --debug ...` to see where")


def _fail(message: str) -> None:
    if os.environ.get("CLARA_DEBUG", "0") not in ("", "0"):
        traceback.print_exc()
    print(f"error: {message}", file=sys.stderr)
    sys.exit(1)


def _resolve(
    cls: type[ConfigT], path: Path | None, overrides: Sequence[str] | None, flags: dict[str, Any] | None = None
) -> ConfigT:
    """The configuration: the file, then the flags that were given, then the overrides."""
    from clara_dist.config import load_config

    # JSON is YAML, so a flag's value arrives as it was typed, whatever characters it holds.
    given = [f"{key}={json.dumps(value)}" for key, value in (flags or {}).items() if value not in (None, [])]
    return load_config(cls, path, [*given, *(overrides or [])])


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"clara-dist {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show where an error came from; also CLARA_DEBUG=1.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    if debug:
        os.environ["CLARA_DEBUG"] = "1"


@app.command()
def demo(
    work_dir: Annotated[Path, typer.Option(help="Where everything is written.")] = Path("demo-run"),
    seed: Annotated[int, typer.Option(help="Of the made-up world and of all training.")] = 1,
    resume: Annotated[bool, typer.Option("--resume", help="Skip what an earlier run has finished.")] = False,
    keep_serving: Annotated[bool, typer.Option("--keep-serving", help="Leave the server up until Ctrl-C.")] = False,
    port: Annotated[int | None, typer.Option(help="Of the server; 8000, or a free one.", show_default=False)] = None,
) -> None:
    """Run the whole system on a small made-up world: train, compress, train jointly, evaluate, serve, ask.

    \b
    Example:
      clara-dist demo --work-dir demo-run --keep-serving
    """
    from clara_dist.distributed.demo import run_demo

    run_demo(work_dir, seed=seed, resume=resume, keep_serving=keep_serving, port=port)


@app.command()
def pipeline(
    config: Annotated[Path, typer.Option(help="YAML file with prepare, compress, joint and evaluate.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the pipeline was stopped.")] = False,
    overrides: Overrides = None,
) -> None:
    """Run the whole road as one job: train the compressor, compress, train jointly, evaluate.

    \b
    Example:
      clara-dist pipeline --config pipeline.yaml compress.workers=8 joint.workers=8
    """
    from clara_dist.config.pipeline import PipelineConfig

    settings = _resolve(PipelineConfig, config, overrides)

    from clara_dist.distributed.pipeline import run

    run(settings, resume=resume)


@app.command()
def init(
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    base: Annotated[str | None, typer.Option(help="Base LLM: a local directory or a hub id.")] = None,
    seed: Annotated[int, typer.Option(help="Draws the adapters and the memory tokens.")] = 0,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Make a new, untrained model on a base LLM.

    \b
    Example:
      clara-dist init models/new --base models/Mistral-7B n_memory_tokens=16 doc_max_tokens=256
    """
    from clara_dist.config import ClaraConfig

    settings = _resolve(ClaraConfig, config, overrides, {"base_model": base})

    from clara_dist.model import Clara

    Clara.from_base(settings, seed=seed).save_pretrained(out)
    print(f"wrote {out}")


@app.command("import-apple")
def import_apple(
    checkpoint: Annotated[Path, typer.Argument(help="A published checkpoint's directory.")],
    out: Annotated[Path, typer.Argument(help="Model directory to write.")],
    base: Annotated[str, typer.Option(help="The base LLM it was trained on: a local directory or a hub id.")],
) -> None:
    """Turn a published CLaRa checkpoint into a model directory.

    \b
    Example:
      clara-dist import-apple CLaRa-7B-E2E/compression-16 models/clara-7b --base models/Mistral-7B-Instruct-v0.2
    """
    from clara_dist.model import apple

    apple.import_apple(checkpoint, base).save_pretrained(out)
    print(f"wrote {out}")


@app.command()
def compress(
    corpus: Annotated[list[str] | None, typer.Option(help="File, directory or glob; repeatable.")] = None,
    model: ModelOption = None,
    store: StoreOption = None,
    workers: Annotated[int | None, typer.Option(help="Compressor actors, each with a copy of the model.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compress a corpus into a memory store with Ray Data. An interrupted job is resumed by the same command.

    \b
    Example:
      clara-dist compress --corpus corpus.jsonl --model models/instruct --store stores/wiki --workers 2
    """
    from clara_dist.config.compress import CompressConfig

    flags = {"corpus": corpus, "model": model, "store": store, "workers": workers}
    settings = _resolve(CompressConfig, config, overrides, flags)

    from clara_dist.distributed import compress_job

    print(compress_job.compress(settings))


@app.command()
def train(
    config: Annotated[Path, typer.Option(help="YAML file of the run: model, stages, workers.")],
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's newest checkpoint.")] = False,
    overrides: Overrides = None,
) -> None:
    """Train the stages of a run with Ray Train.

    \b
    Example:
      clara-dist train --config run.yaml run_dir=runs/a stages.0.steps=50
    """
    from clara_dist.config import TrainConfig

    settings = _resolve(TrainConfig, config, overrides)

    from clara_dist.distributed import train_job

    for stage, path in train_job.train(settings, resume=resume).items():
        print(f"{stage}: {path}")


@app.command()
def serve(
    model: ModelOption = None,
    store: StoreOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs an API key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Serve a model and its store over HTTP with Ray Serve, until Ctrl-C.

    \b
    Example:
      clara-dist serve --model models/joint --store stores/wiki --port 8000
    """
    from clara_dist.config.serve import ServeConfig

    settings = _resolve(ServeConfig, config, overrides, {"model": model, "store": store, "host": host, "port": port})

    from clara_dist.distributed import serve_app

    serve_app.run(settings)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    url: Annotated[str, typer.Option(envvar="CLARA_URL", help="The server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar="CLARA_API_KEY", help="Its key, if it wants one.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Documents to answer from.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.")] = None,
) -> None:
    """Ask a running server, and show the answer with its sources.

    \b
    Example:
      clara-dist ask "who built the lighthouse?" --url http://127.0.0.1:8000
    """
    from clara_dist.client import Client

    with Client(url, api_key=api_key) as client:
        reply = client.ask(question, top_k=top_k, max_tokens=max_tokens)
    print(reply.answer)
    for number, source in enumerate(reply.sources, 1):
        print(f"  [{number}] {source.score:.3f}  {source.doc_id}  {source.title}\n      {source.text}")


@app.command("eval")
def evaluate(
    model: ModelOption = None,
    store: StoreOption = None,
    questions: Annotated[str | None, typer.Option(help="Questions with answers and positives (jsonl).")] = None,
    output: Annotated[str | None, typer.Option(help="Directory for report, table and every answer.")] = None,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Compare the model's retrieval and answers with BM25, the untrained reasoner, the oracle and the closed book.

    \b
    Example:
      clara-dist eval --model models/joint --store stores/wiki --questions questions.jsonl --output reports/a
    """
    from clara_dist.config.evaluate import EvaluateConfig

    flags = {"model": model, "store": store, "questions": questions, "output": output}
    settings = _resolve(EvaluateConfig, config, overrides, flags)

    from clara_dist.distributed import evaluate_job

    print(evaluate_job.evaluate(settings).table())


@store_app.command("info")
def store_info(
    store: Annotated[str, typer.Argument(help="The store: a directory or a URL.")],
    version: Annotated[int | None, typer.Option(help="Version; the current one if left out.")] = None,
) -> None:
    """Show what a store holds and which model wrote it.

    \b
    Example:
      clara-dist store info stores/wiki
    """
    from clara_dist.store import info

    found = info(store, version)
    manifest = found.manifest
    schema = manifest.schema
    print(f"store          {found.url}")
    print(f"version        {manifest.version} of {', '.join(map(str, found.versions))}, written {manifest.created_at}")
    print(f"documents      {manifest.n_documents:,} in {len(manifest.shards)} shards, {manifest.size_bytes:,} bytes")
    print(f"memory         {schema.n_memory_tokens} x {schema.hidden_size} float16 a document")
    for name, kind in schema.metadata_columns.items():
        print(f"column         {name} ({kind})")
    for name, value in manifest.fingerprint.fields.items():
        print(f"fingerprint    {name} = {value}")


@store_app.command("verify")
def store_verify(
    store: Annotated[str, typer.Argument(help="The store: a directory or a URL.")],
    version: Annotated[int | None, typer.Option(help="Version; the current one if left out.")] = None,
) -> None:
    """Compare every byte of a store with its manifest; exit code 1 if anything is wrong.

    \b
    Example:
      clara-dist store verify stores/wiki
    """
    from clara_dist.store import verify

    report = verify(store, version)
    print(
        f"{report.url} version {report.version}: "
        f"{report.n_documents:,} documents in {report.n_shards} shards, {report.size_bytes:,} bytes"
    )
    for problem in report.problems:
        print(f"  {problem.file}: {problem.what}")
    for file in report.unlisted_files:
        print(f"  not part of any version (harmless): {file}")
    print("no damage" if report.ok else f"{len(report.problems)} problems")
    if not report.ok:
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
