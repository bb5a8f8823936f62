"""The Serve application, ingress -> engine -> retriever, and a server around it."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import GetTimeoutError, RayActorError

from clara_dist.client import Client
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.paths import absolute, absolute_base
from clara_dist.distributed.resources import require_room
from clara_dist.distributed.serve_engine import Engine
from clara_dist.distributed.serve_guard import ApiKeys
from clara_dist.distributed.serve_ingress import Ingress
from clara_dist.distributed.serve_retriever import Retriever
from clara_dist.distributed.serve_writer import Writer
from clara_dist.distributed.session import cluster_has_gpus, connect
from clara_dist.distributed.stopping import stoppable
from clara_dist.distributed.visibility import require_visible
from clara_dist.errors import ClusterError, ConfigError, RequestError

APP_NAME = "clara"

# The ingress only waits: it may hold as many requests as the engine's queue lets in, and the queue is what refuses.
_INGRESS_REQUESTS = 10_000
_INGRESS_CPUS = 0.1
_POLL_S = 0.2
# On top of the longest request.
_DRAIN_S = 5.0
_SHUTDOWN_S = 60.0
_CONTROLLER = "SERVE_CONTROLLER_ACTOR"
# Serve's own settings for replicas that wait and compute elsewhere, as ours do: one event loop for all that a replica
# does, and calls between replicas over gRPC. Of what a request costs outside the engine this saves a fifth. A cluster
# has them from its manifest: they count where Ray's processes start.
SERVE_ENVIRONMENT = {
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
}


def build_app(config: ServeConfig | Mapping[str, Any]) -> serve.Application:
    """The application; also the builder of `serve run` and `serve deploy`, whose YAML ``args`` are `ServeConfig`.

    A store that the model did not write makes the engine refuse to start.
    """
    if not isinstance(config, ServeConfig):
        config = ServeConfig.model_validate(dict(config))
    config = config.model_copy(
        update={
            "model": absolute(config.model),
            "base_model": absolute_base(config.model, config.base_model),
            "store": absolute(config.store),
            "api_key_file": None if config.api_key_file is None else absolute(config.api_key_file),
        }
    )
    device = _device(config)
    # What a replica has begun may end, and it is stopped as soon as it has.
    drain = {
        "graceful_shutdown_timeout_s": config.limits.request_timeout_s + _DRAIN_S,
        "graceful_shutdown_wait_loop_s": 0.5,
    }
    retriever = serve.deployment(
        Retriever,
        num_replicas=config.retriever_replicas,
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": config.retriever_cpus},
        **drain,
    )
    one = config.retriever_shards == 1
    retrievers = [
        retriever.options(name="Retriever" if one else f"Retriever-{shard}").bind(config, shard)
        for shard in range(config.retriever_shards)
    ]
    engine = serve.deployment(
        Engine,
        num_replicas=config.engine_replicas,
        # One batch at work and the next one waiting for it.
        max_ongoing_requests=2 * config.batch_size,
        max_queued_requests=config.limits.max_queued_requests,
        max_constructor_retry_count=2,
        ray_actor_options={
            "num_cpus": config.engine_cpus,
            "num_gpus": config.engine_gpus if device == "cuda" else 0,
        },
        **drain,
    ).bind(config, device, retrievers)
    return serve.deployment(
        serve.ingress()(Ingress),
        num_replicas=config.ingress_replicas,
        max_ongoing_requests=_INGRESS_REQUESTS,
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": _INGRESS_CPUS},
        **drain,
    ).bind(config, engine, _writer(config, drain) if config.allow_writes else None)


def _writer(config: ServeConfig, drain: dict[str, float]) -> serve.Application:
    return serve.deployment(
        Writer,
        # One: requests take turns anyway, and every version has one parent.
        num_replicas=1,
        max_queued_requests=config.limits.max_queued_requests,
        max_constructor_retry_count=2,
        ray_actor_options={"num_cpus": config.writer_cpus, "num_gpus": config.writer_gpus},
        **drain,
    ).bind(config, "cuda" if config.writer_gpus else "cpu")


def _device(config: ServeConfig) -> str:
    if config.device != "auto":
        return config.device
    return "cuda" if ray.is_initialized() and cluster_has_gpus() else "cpu"


def deploy(config: ServeConfig, *, name: str = APP_NAME, route_prefix: str = "/") -> None:
    """Put the application on the Serve that runs here, and wait until all its deployments do.

    Raises:
        ClusterError: A deployment cannot start; the message says why. What was deployed is removed again.
    """
    target = serve.RunTarget(build_app(config), name=name, route_prefix=route_prefix)
    serve.run_many([target], wait_for_applications_running=False)
    deadline = time.monotonic() + config.start_timeout_s
    while True:
        app = serve.status().applications[name]
        if app.status == "RUNNING":
            return
        messages = [app.message, *(deployment.message for deployment in app.deployments.values())]
        if app.status == "DEPLOY_FAILED":
            serve.delete(name)
            raise ClusterError("the server cannot start", got=_cause(messages))
        if time.monotonic() > deadline:
            serve.delete(name)
            raise ClusterError(
                "the server did not start in time",
                got=_cause(messages),
                expected=f"all deployments running after {config.start_timeout_s:g} s (start_timeout_s)",
            )
        time.sleep(_POLL_S)


def remove(name: str, config: ServeConfig) -> None:
    """Take an application away: nothing new reaches it, and what it has begun may end.

    For as long as a request may take; who is at work longer is stopped by Serve.
    """
    if name not in serve.status().applications:
        return
    serve.delete(name, _blocking=False)
    deadline = time.monotonic() + config.limits.request_timeout_s + 2 * _DRAIN_S
    while name in serve.status().applications and time.monotonic() < deadline:
        time.sleep(_POLL_S)


def _cause(messages: list[str]) -> str:
    """The error of a replica out of Serve's report, which wraps it in its own words and a stack trace."""
    report = "\n".join(message for message in messages if message)
    ours = re.findall(r"clara_dist\.errors\.(\w+: .*(?:\n {2}(?:got|expected|to do): .*)*)", report)
    return ours[-1] if ours else report


@contextmanager
def serving(config: ServeConfig, *, address: str | None = None) -> Iterator[str]:
    """A server for the length of a ``with`` block.

    Uses the connected Ray, or connects as `session.connect` does. Ctrl-C and SIGTERM leave the block, as `stoppable`
    has it.

    Args:
        config: What to serve, and where.
        address: A Ray cluster; None: ``RAY_ADDRESS``, else a local Ray.

    Yields:
        The server's URL, when it answers.

    Raises:
        ConfigError: Model or store is not there, the port is taken, or an API key is missing.
        ClusterError: A local Ray has no room for the engine, a node does not see the files, Serve runs there already,
            or a deployment cannot start.
    """
    require_startable(config)
    for name, value in SERVE_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with connect(address):
        gpus = config.engine_gpus if _device(config) == "cuda" else 0
        require_room({"CPU": config.engine_cpus, "GPU": gpus}, config.engine_replicas, "the engine")
        require_visible(_inputs(config), None)
        if _serve_is_running():
            raise ClusterError("Serve runs on this cluster already", hint="deploy to it with: serve deploy YAML")
        # What Serve says of itself on the console: warnings only.
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            # Whenever a stop comes, also while replicas load: Serve outlives its driver on a cluster.
            with stoppable("finishing what has begun, then shutting down; Ctrl-C again does so at once ..."):
                serve.start(http_options={"host": config.host, "port": config.port})
                deploy(config)
                url = _url(config)
                _wait_for_health(url, config.start_timeout_s)
                yield url
        finally:
            try:
                # While the proxy still stands: with it would fall the answers that are under way.
                remove(APP_NAME, config)
            finally:
                _shut_down_serve()


def run(config: ServeConfig, *, address: str | None = None) -> None:
    """Serve until Ctrl-C or SIGTERM, then shut down; raises as `serving` does.

    Who stops a server that serves gets what was asked for: no error. Who stops one that loads gets 130 or 143.
    """
    print(f"loading {config.model} and {config.store} ...", flush=True)
    is_serving = False
    try:
        with serving(config, address=address) as url:
            is_serving = True
            body = json.dumps({"question": "..."})
            key = f" -H 'Authorization: Bearer '\"${config.api_key_env}\"" if ApiKeys.of(config) else ""
            print(f"serving at {url}; stop with Ctrl-C. Ask it:")
            print(f"  curl {url}/v1/answers -H 'Content-Type: application/json'{key} -d '{body}'", flush=True)
            threading.Event().wait()
    except (KeyboardInterrupt, SystemExit):
        if not is_serving:
            raise


def require_startable(config: ServeConfig) -> None:
    """What can be told before Ray is asked.

    Raises:
        ConfigError: Model or store is not there, the port is taken, or an API key is missing.
    """
    ApiKeys.of(config)
    _require_directories(config)
    _require_free_port(config)


def _require_directories(config: ServeConfig) -> None:
    """Replicas would find out as well, half a minute later."""
    for what, path in (("model", config.model), ("store", config.store)):
        if "://" not in path and not Path(path).is_dir():
            raise ConfigError(f"there is no {what} to serve", got=path, expected="a directory")


def _inputs(config: ServeConfig) -> list[str]:
    base = absolute_base(config.model, config.base_model)
    own = [base] if base and Path(base).is_dir() else []
    return [absolute(config.model), *own, absolute(config.store)]


def _require_free_port(config: ServeConfig) -> None:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, config.port))
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {config.host}:{config.port}", got=error.strerror, hint="choose another port"
            ) from error


def _serve_is_running() -> bool:
    try:
        ray.get_actor(_CONTROLLER, namespace="serve")
    except ValueError:
        return False
    return True


def _shut_down_serve() -> None:
    """`serve.shutdown`, in silence.

    The controller's last call ends with the controller. `serve.shutdown` makes that call as one to be retried, and Ray
    prints on the driver's stdout that it failed.
    """
    if _serve_is_running():
        controller = ray.get_actor(_CONTROLLER, namespace="serve")
        with suppress(RayActorError, GetTimeoutError):
            ray.get(controller.graceful_shutdown.options(max_task_retries=0).remote(), timeout=_SHUTDOWN_S)
    serve.shutdown()


def _url(config: ServeConfig) -> str:
    """Where this machine reaches the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    return f"http://[{host}]:{config.port}" if ":" in host else f"http://{host}:{config.port}"


def _wait_for_health(url: str, timeout_s: float) -> None:
    """Deployments run before the proxy knows their route."""
    deadline = time.monotonic() + timeout_s
    with Client(url, timeout_s=10.0) as client:
        while True:
            try:
                client.health()
                return
            except RequestError as error:
                if time.monotonic() > deadline:
                    raise ClusterError(f"the server at {url} does not answer", got=error) from error
            time.sleep(_POLL_S)
