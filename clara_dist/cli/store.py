"""Looking after memory stores."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_dist.cli.base import app

store_app = typer.Typer(help="Look at memory stores.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(store_app, name="store")


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
