"""The RayService's own serveConfigV2, deployed by `serve deploy`: it asks the dashboard, as KubeRay's operator does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
import ray
import yaml
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from clara_dist.config.serve import ServeConfig
from kustomized import build

OVERLAY = Path(__file__).resolve().parents[2] / "cluster" / "kuberay" / "overlays" / "small"
NAME, KEY = "from-manifest", "key-of-a-secret"
TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(ThreadingHTTPServer):
    """Takes traces as OpenTelemetry's collector does, and keeps the spans."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Traces)
        self.spans: list[Any] = []


class Traces(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        request = ExportTraceServiceRequest.FromString(body)
        self.server.spans += [s for r in request.resource_spans for scope in r.scope_spans for s in scope.spans]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with Collector() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def deployed(
    server: str, serve_config: ServeConfig, collector: Collector, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """The application of the manifest, with the paths of this machine, beside the one that runs here."""
    (service,) = [each for each in build(OVERLAY) if each["kind"] == "RayService"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    environment = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.server_port}",
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_EXPORTER_OTLP_COMPRESSION": "none",
    }
    app.update(name=NAME, route_prefix=f"/{NAME}", runtime_env={"env_vars": environment})
    keys = tmp_path_factory.mktemp("secret") / "keys"
    keys.write_text(f"{KEY}\n", encoding="utf-8")
    app["args"].update(model=serve_config.model, store=serve_config.store, api_key_file=str(keys))
    config["tracing_config"] = {
        "enabled": True,
        "exporter_import_path": "clara_dist.distributed.serve_tracing:otlp",
        "sampling_ratio": 1.0,
    }
    file = keys.with_name("serve.yaml")
    file.write_text(yaml.safe_dump(config), encoding="utf-8")
    dashboard = f"http://{ray._private.worker.get_dashboard_url()}"
    command = [str(Path(sys.executable).parent / "serve"), "deploy", str(file), "--address", dashboard]
    # Whoever has no token changes nothing that is served.
    without = {name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH")}
    refused = subprocess.run(command, env=without | {"HOME": str(keys.parent)}, capture_output=True, text=True)
    assert refused.returncode != 0, refused.stdout
    assert "401" in refused.stderr or "Authentication" in refused.stderr, refused.stderr
    subprocess.run(command, check=True, capture_output=True)
    client = ServeSubmissionClient(dashboard)
    try:
        deadline = time.monotonic() + 180
        while (status := serve.status().applications[NAME]).status != "RUNNING":
            assert status.status != "DEPLOY_FAILED", status
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        yield f"{server}/{NAME}"
    finally:
        client.deploy_applications({"applications": [], "tracing_config": {"enabled": False}})
        while NAME in serve.status().applications:
            time.sleep(0.2)


def ask(url: str, **headers: str) -> httpx.Response:
    body = {"question": "Who built the lighthouse?"}
    return httpx.post(f"{url}/v1/answers", json=body, headers=headers, timeout=60, trust_env=False)


def test_the_manifests_application_answers_who_has_a_key(deployed: str, http: httpx.Client) -> None:
    assert ask(deployed).status_code == 401
    reply = ask(deployed, Authorization=f"Bearer {KEY}").raise_for_status().json()
    # What the two have in common, model and store, gives the same sources; top_k is each one's own.
    assert (
        reply["sources"][:2]
        == http.post("/v1/answers", json={"question": "Who built the lighthouse?"}).json()["sources"]
    )
    assert len(reply["sources"]) == 5


def test_logs_are_json_and_name_the_request(deployed: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "request-of-a-test"}
    assert ask(deployed, **headers).headers["x-request-id"] == "request-of-a-test"
    folder = Path(ray._private.worker._global_node.get_logs_dir_path()) / "serve"
    deadline = time.monotonic() + 60
    found: set[str] = set()
    while found < {"Ingress", "Engine"}:
        assert time.monotonic() < deadline, found
        for path in folder.glob(f"replica_{NAME}_*.log"):
            for line in path.read_text(encoding="utf-8").splitlines():
                entry = json.loads(line)
                assert KEY not in line
                if entry.get("request_id") == "request-of-a-test":
                    found.add(entry["deployment"])


def test_traces_reach_a_collector_under_the_callers_id(deployed: str, collector: Collector) -> None:
    ask(deployed, Authorization=f"Bearer {KEY}", traceparent=f"00-{TRACE}-b7ad6b7169203331-01").raise_for_status()
    deadline = time.monotonic() + 60
    wanted = {("Engine", "answer"), ("Retriever", "search")}
    while not wanted <= (found := called(collector)):
        assert time.monotonic() < deadline, found


def called(collector: Collector) -> set[tuple[str, str]]:
    """Deployments and methods that the trace of the test went through."""
    spans = [span for span in collector.spans if span.trace_id.hex() == TRACE]
    tags = [{tag.key: tag.value.string_value for tag in span.attributes} for span in spans]
    return {(tag["rpc.service"], tag["rpc.method"]) for tag in tags if tag.get("rpc.service") and tag.get("rpc.method")}
