"""Jobs of a cluster from here."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from clara_dist.cli.base import app


@app.command()
def submit(
    command: Annotated[
        Literal["compress", "train", "evaluate", "serve", "pipeline", "synthesize"],
        typer.Argument(help="The command to run there."),
    ],
    args: Annotated[list[str] | None, typer.Argument(metavar="[-- ARGS]...", help="Its options.")] = None,
    address: Annotated[
        str | None, typer.Option(help="http://HEAD:8265; else RAY_API_SERVER_ADDRESS, else RAY_ADDRESS.")
    ] = None,
    working_dir: Annotated[str, typer.Option(help="Directory that travels with the job, or the URL of a zip.")] = ".",
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Print its logs, and end as it ends.")] = True,
    entrypoint_num_cpus: Annotated[
        float, typer.Option(min=0, help="CPUs for the driver, on any node; 0: on the head, none reserved.")
    ] = 0,
    constraints: Annotated[
        str | None, typer.Option(help="Install the working directory with these pins (pip) on the nodes first.")
    ] = None,
    stop_wait: Annotated[int, typer.Option(min=0, help="Seconds between the request to stop and the kill.")] = 300,
) -> None:
    """Run a command as a job of a Ray cluster; the exit code is the job's.

    Ctrl-C asks the job to stop. The token of a cluster is read as Ray reads it: RAY_AUTH_MODE=token, with
    RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token. Keys that a command needs belong into the environment of
    the nodes. Paths in a job are the cluster's: results go to paths that all nodes see, or to URLs.

    \b
    Example:
      clara-dist submit compress --address http://127.0.0.1:8265 -- --config compress.yaml workers=8
    """
    from clara_dist.distributed.submit import Submission
    from clara_dist.distributed.submit import submit as submit_job

    submission = Submission(command, tuple(args or ()), working_dir, entrypoint_num_cpus, constraints, stop_wait)
    raise typer.Exit(submit_job(submission, address, follow=follow))
