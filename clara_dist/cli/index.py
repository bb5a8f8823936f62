"""Approximate indexes of memory stores."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clara_dist.cli.base import ConfigFile, ModelOption, Overrides, app, resolve
from clara_dist.cli.store import JsonOption, StoreArgument, VersionOption

if TYPE_CHECKING:
    from clara_dist.store.index_manifest import IndexManifest

index_app = typer.Typer(help="Build indexes for approximate search.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(index_app, name="index")


@index_app.command("build")
def index_build(
    store: StoreArgument,
    overrides: Overrides = None,
    config: ConfigFile = None,
    factory: Annotated[str | None, typer.Option(help="FAISS's index-factory string, such as PCA64,SQ8.")] = None,
    rescored: Annotated[int | None, typer.Option(help="Rows a query whose exact score is computed.")] = None,
    model: ModelOption = None,
    questions: Annotated[str | None, typer.Option(help="Questions as `eval` reads them, to measure recall.")] = None,
    retrain: Annotated[bool, typer.Option("--retrain", help="Begin anew, even if only shards are missing.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Also write what was measured there.")] = None,
) -> None:
    """Build the index of a store's newest version, or complete it.

    Exact search reads all memories for every question. An index holds a code a memory, 1/24 of its size as shipped;
    the codes choose some hundred rows, and their exact scores decide. When it is built, its recall@20 against exact
    search and the bytes that both read are measured and printed; below a recall of 0.99 it is not taken into use.

    After `store append`, `delete` or `compact` run it again: it encodes only shards that are new, and a build that was
    killed goes on where it was. The server uses the index of the version that it serves (its setting `index`).

    \b
    Examples:
      clara-dist index build stores/wiki
      clara-dist index build stores/wiki --model models/joint --questions questions.jsonl
      clara-dist index build stores/wiki --factory PCA64,IVF256,SQ8 --rescored 400
    """
    from clara_dist.config.index import IndexConfig

    flags = {"store": store, "factory": factory, "rescored": rescored, "model": model, "questions": questions}
    settings = resolve(IndexConfig, config, overrides, {**flags, "retrain": retrain or None})
    import torch

    from clara_dist.retrieval.index_build import build_index

    torch.set_num_threads(settings.threads)
    query_QX = None
    if settings.model is not None and settings.questions is not None:
        from clara_dist.data.questions import read_questions
        from clara_dist.inference.api import Clara

        asked = [row.question for row in read_questions(settings.questions)][: settings.queries]
        query_QX = Clara.from_pretrained(settings.model).reason(asked).flatten(1).numpy()
    manifest = build_index(settings, query_QX)
    _tell(manifest)
    if json_file is not None:
        report: dict[str, Any] = {"factory": manifest.factory, "rescored": manifest.rescored}
        report["measured"] = None if manifest.measured is None else asdict(manifest.measured)
        json_file.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
        print(f"report: {json_file}")


@index_app.command("info")
def index_info(store: StoreArgument, version: VersionOption = None, as_json: JsonOption = False) -> None:
    """Show what index a version of a store has, and what was measured of it.

    \b
    Example:
      clara-dist index info stores/wiki
    """
    from clara_dist.errors import RetrievalError
    from clara_dist.store.index_manifest import read_index_manifest
    from clara_dist.store.manifest import read_manifest
    from clara_dist.store.storage import open_storage

    storage = open_storage(store)
    current = read_manifest(storage, version)
    manifest = read_index_manifest(storage, current.version)
    if manifest is None or manifest.commit_id != current.commit_id:
        raise RetrievalError(
            f"version {current.version} of the store {store} has no index", hint=f"clara-dist index build {store}"
        )
    if as_json:
        print(json.dumps(asdict(manifest), indent=1))
    else:
        _tell(manifest)


def _tell(manifest: IndexManifest) -> None:
    print(f"index          {manifest.factory}, {manifest.rescored} rows rescored, {manifest.size_bytes:,} bytes")
    print(f"version        {manifest.version} of the store, {len(manifest.codes)} shards")
    found = manifest.measured
    if found is None:
        print("state          incomplete, not used: run `clara-dist index build` again")
        return
    print(f"recall@{found.k:<7} {found.recall:.4f} against exact search, {found.n_queries} queries: {found.queries}")
    share = found.bytes_per_query / found.exact_bytes
    print(f"read a query   {found.bytes_per_query:,} bytes; exact search {found.exact_bytes:,} ({share:.1%} of them)")
