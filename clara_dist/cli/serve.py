"""The server, and asking it."""

from __future__ import annotations

from typing import Annotated

import typer

from clara_dist.cli.base import ConfigFile, DryRun, ModelOption, Overrides, StoreOption, app, resolve


@app.command()
def serve(
    model: ModelOption = None,
    store: StoreOption = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; any but loopback needs an API key.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    dry_run: DryRun = False,
    config: ConfigFile = None,
    overrides: Overrides = None,
) -> None:
    """Serve a model and its store over HTTP with Ray Serve, until Ctrl-C.

    \b
    Example:
      clara-dist serve --model models/joint --store stores/wiki --port 8000
    """
    from clara_dist.config.serve import ServeConfig

    settings = resolve(ServeConfig, config, overrides, {"model": model, "store": store, "host": host, "port": port})

    if dry_run:
        from clara_dist.distributed import dry_run as plans

        print(plans.serve(settings))
        return

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
