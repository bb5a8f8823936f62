"""Changing memory stores: each command commits one new version, or nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clara_dist.cli.store import StoreArgument, VersionOption, WhereOption, store_app

if TYPE_CHECKING:
    from clara_dist.store.append import OnExisting
    from clara_dist.store.manifest import Manifest

_HOUR_S, _DAY_S = 3600.0, 24 * 3600.0
OnExistingOption = Annotated[
    str, typer.Option(metavar="error|skip|replace", help="What becomes of a document whose id is in the store.")
]


@store_app.command("append")
def store_append(
    store: StoreArgument,
    source: Annotated[str, typer.Argument(help="The store whose documents are added.")],
    on_existing: OnExistingOption = "error",
) -> None:
    """Add the documents of another store that the same model wrote; `compress --append` adds those of a corpus.

    \b
    Example:
      clara-dist store append stores/wiki stores/news --on-existing skip
    """
    from clara_dist.store import append_store

    _tell(store, append_store(store, source, on_existing=_on_existing(on_existing)))


@store_app.command("delete")
def store_delete(
    store: StoreArgument,
    doc_ids: Annotated[list[str] | None, typer.Option("--id", help="A document; repeatable.")] = None,
    ids_file: Annotated[Path | None, typer.Option(help="A file with one id a line.")] = None,
    where: WhereOption = None,
    missing_ok: Annotated[bool, typer.Option("--missing-ok", help="Go on without ids that are not there.")] = False,
) -> None:
    """Delete documents; the id of a long document deletes all its passages.

    Older versions still have them, until `store gc` gives those up.

    \b
    Examples:
      clara-dist store delete stores/wiki --id Q42 --id Q64
      clara-dist store delete stores/wiki --where "lang = 'fr' and year < 2019"
    """
    from clara_dist.store import delete

    names = [*(doc_ids or ()), *(ids_file.read_text(encoding="utf-8").splitlines() if ids_file else ())]
    names = [name for name in names if name]
    report = delete(store, doc_ids=names or None, where=where, missing_ok=missing_ok)
    for doc_id in report.missing:
        print(f"not in the store: {doc_id}")
    print(f"deleted {report.n_deleted:,} rows")
    _tell(store, report.manifest)


@store_app.command("restore")
def store_restore(
    store: StoreArgument, version: Annotated[int, typer.Option(help="The version whose contents come back.")]
) -> None:
    """Make a new version that holds what an older one does.

    \b
    Example:
      clara-dist store restore stores/wiki --version 3
    """
    from clara_dist.store import restore

    _tell(store, restore(store, version))


@store_app.command("compact")
def store_compact(
    store: StoreArgument,
    shard_mb: Annotated[int, typer.Option(min=1, help="About the size of a shard.")] = 256,
    max_deleted: Annotated[float, typer.Option(min=0, max=1, help="Largest fraction of deleted rows.")] = 0.2,
) -> None:
    """Rewrite shards that are too small or hold many deleted rows. Memories stay the same, bit for bit.

    \b
    Example:
      clara-dist store compact stores/wiki
    """
    from clara_dist.store import compact

    with _counting() as count:
        manifest = compact(store, target_size_bytes=shard_mb << 20, max_deleted=max_deleted, on_progress=count)
    _tell(store, manifest)


@store_app.command("export")
def store_export(
    store: StoreArgument,
    folder: Annotated[str, typer.Argument(help="Where the Parquet files go: a directory or a URL.")],
    version: VersionOption = None,
    where: WhereOption = None,
) -> None:
    """Write a store, or some of its documents, as Parquet files, one a shard.

    \b
    Examples:
      clara-dist store export stores/wiki exports/wiki
      clara-dist store export stores/wiki exports/recent --where "year >= 2019"
    """
    from clara_dist.store import export_parquet

    with _counting() as count:
        names = export_parquet(store, folder, version, where=where, on_progress=count)
    print(f"{folder}: {len(names)} files")


@store_app.command("import")
def store_import(
    folder: Annotated[str, typer.Argument(help="What `store export` wrote: a directory or a URL.")],
    store: Annotated[str, typer.Argument(help="The store; made if it does not exist, else appended to.")],
    on_existing: OnExistingOption = "error",
) -> None:
    """Make a store of exported Parquet files, or add them to one of the same model.

    \b
    Example:
      clara-dist store import exports/wiki stores/wiki-again
    """
    from clara_dist.store import import_parquet

    with _counting() as count:
        manifest = import_parquet(folder, store, on_existing=_on_existing(on_existing), on_progress=count)
    _tell(store, manifest)


@store_app.command("gc")
def store_gc(
    store: StoreArgument,
    keep_versions: Annotated[int | None, typer.Option(min=1, help="Give up all but the newest so many.")] = None,
    older_than_days: Annotated[float | None, typer.Option(min=0, help="Give up versions that are older.")] = None,
    grace_hours: Annotated[float, typer.Option(min=0, help="Leave younger files alone: a job may need them.")] = 24.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be deleted.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Finish a collection that was killed.")] = False,
) -> None:
    """Delete files that no version needs, such as those of killed jobs; and old versions, if you say which.

    With both --keep-versions and --older-than-days, versions go for which both hold.

    \b
    Examples:
      clara-dist store gc stores/wiki --dry-run
      clara-dist store gc stores/wiki --keep-versions 3
    """
    from clara_dist.store import collect

    report = collect(
        store,
        keep_versions=keep_versions,
        older_than_s=None if older_than_days is None else older_than_days * _DAY_S,
        grace_s=grace_hours * _HOUR_S,
        dry_run=dry_run,
        resume=resume,
    )
    would = "would be " if dry_run else ""
    if report.versions:
        print(f"versions {would}given up: {', '.join(map(str, report.versions))}")
    for file in report.files:
        print(f"{would}deleted: {file}")
    print(f"{len(report.files)} files {would}deleted; {report.n_young} that no version lists are too young to judge")


def _tell(store: str, manifest: Manifest) -> None:
    print(f"store {store}, version {manifest.version}: {manifest.n_documents:,} rows in {len(manifest.shards)} shards")


@contextmanager
def _counting() -> Iterator[Callable[[int], object]]:
    """A running count of documents, on a terminal."""
    from tqdm import tqdm

    with tqdm(unit=" documents", disable=None) as bar:
        yield bar.update


def _on_existing(value: str) -> OnExisting:
    choices: dict[str, OnExisting] = {"error": "error", "skip": "skip", "replace": "replace"}
    if value not in choices:
        raise typer.BadParameter(f"{value!r} is not error, skip or replace", param_hint="--on-existing")
    return choices[value]
