"""Looking at memory stores."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from clara_dist.cli.base import app

store_app = typer.Typer(help="Look after memory stores.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")

StoreArgument = Annotated[str, typer.Argument(help="The store: a directory or a URL.")]
VersionOption = Annotated[int | None, typer.Option(help="Version; the current one if left out.")]
WhereOption = Annotated[
    str | None, typer.Option(help="Only documents with such metadata: \"lang = 'fr' and year >= 2019\".")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@store_app.command("info")
def store_info(store: StoreArgument, version: VersionOption = None, as_json: JsonOption = False) -> None:
    """Show what a store holds and which model wrote it.

    \b
    Examples:
      clara-dist store info stores/wiki
      clara-dist store info stores/wiki --version 3 --json
    """
    from clara_dist.store import info

    found = info(store, version)
    manifest = found.manifest
    schema = manifest.schema
    if as_json:
        facts = {"store": found.url, "versions": found.versions, **json.loads(manifest.to_json())}
        facts |= {"n_documents": found.n_documents, "n_passages": manifest.n_documents}
        del facts["shards"], facts["checksum"]
        print(json.dumps({**facts, "n_shards": len(manifest.shards), "size_bytes": manifest.size_bytes}, indent=1))
        return
    print(f"store          {found.url}")
    print(
        f"version        {manifest.version} ({manifest.operation}) of {', '.join(map(str, found.versions))}, "
        f"written {manifest.created_at}"
    )
    print(
        f"documents      {found.n_documents:,}, as {manifest.n_documents:,} passages "
        f"in {len(manifest.shards)} shards, {manifest.size_bytes:,} bytes"
    )
    if manifest.n_deleted:
        print(f"deleted        {manifest.n_deleted:,} passages more, whose space `clara-dist store compact` frees")
    print(f"memory         {schema.n_memory_tokens} x {schema.hidden_size} float16 a passage")
    for name, kind in schema.metadata_columns.items():
        print(f"column         {name} ({kind})")
    for name, value in manifest.fingerprint.fields.items():
        print(f"fingerprint    {name} = {value}")


@store_app.command("versions")
def store_versions(store: StoreArgument, as_json: JsonOption = False) -> None:
    """List a store's versions: any of them can be read with `--version`, or brought back with `store restore`.

    \b
    Example:
      clara-dist store versions stores/wiki
    """
    from clara_dist.store import history

    manifests = history(store)
    if as_json:
        print(
            json.dumps(
                [
                    {
                        "version": manifest.version,
                        "operation": manifest.operation,
                        "created_at": manifest.created_at,
                        "n_documents": manifest.n_documents,
                        "n_shards": len(manifest.shards),
                        "size_bytes": manifest.size_bytes,
                    }
                    for manifest in manifests
                ],
                indent=1,
            )
        )
        return
    for manifest in manifests:
        print(
            f"{manifest.version:>7}  {manifest.created_at}  {manifest.operation:<9} "
            f"{manifest.n_documents:>12,} rows in {len(manifest.shards)} shards"
        )


@store_app.command("verify")
def store_verify(store: StoreArgument, version: VersionOption = None, as_json: JsonOption = False) -> None:
    """Compare every byte of a store with its manifest; exit code 1 if anything is wrong.

    \b
    Example:
      clara-dist store verify stores/wiki
    """
    from clara_dist.store import verify

    report = verify(store, version)
    if as_json:
        print(json.dumps({"ok": report.ok, **asdict(report)}, indent=1))
    else:
        print(
            f"{report.url} version {report.version}: "
            f"{report.n_documents:,} rows in {report.n_shards} shards, {report.size_bytes:,} bytes"
        )
        for problem in report.problems:
            print(f"  {problem.file}: {problem.what}")
        for file in report.unlisted_files:
            print(f"  not part of any version (harmless): {file}")
        print("no damage" if report.ok else f"{len(report.problems)} problems")
    if not report.ok:
        raise typer.Exit(1)


@store_app.command("diff")
def store_diff(
    store: StoreArgument,
    other: Annotated[str | None, typer.Argument(help="Another store; the same one if left out.")] = None,
    from_version: Annotated[int | None, typer.Option("--from", help="Version of STORE; default: current.")] = None,
    to_version: Annotated[int | None, typer.Option("--to", help="Version of OTHER; default: current.")] = None,
    ids: Annotated[bool, typer.Option("--ids", help="List the documents, not only their number.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compare two versions of a store, or two stores, document by document; exit code 1 if they differ.

    \b
    Examples:
      clara-dist store diff stores/wiki --from 1 --to 2 --ids
      clara-dist store diff stores/wiki stores/wiki-again
    """
    from clara_dist.store import MemoryStore, diff

    report = diff(MemoryStore.open(store, from_version), MemoryStore.open(other or store, to_version))
    if as_json:
        print(json.dumps({"equal": report.equal, **asdict(report)}, indent=1))
    else:
        for name, values in report.fingerprints.items():
            print(f"fingerprint    {name}: {values[0]} -> {values[1]}")
        print(
            f"{len(report.added):,} added, {len(report.removed):,} removed, "
            f"{len(report.changed):,} changed, {report.n_same:,} the same"
        )
        if ids:
            for sign, names in (("+", report.added), ("-", report.removed)):
                for doc_id in names:
                    print(f"{sign} {doc_id}")
            for doc_id, what in report.changed.items():
                print(f"~ {doc_id}: {', '.join(what)}")
    if not report.equal:
        raise typer.Exit(1)
