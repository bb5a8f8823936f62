"""The RayService's own serveConfigV2, deployed as KubeRay's operator and `serve deploy` do: by the dashboard."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import ray
import yaml
from ray import serve
from ray.dashboard.modules.serve.sdk import ServeSubmissionClient

from clara_dist.config.serve import ServeConfig
from kustomized import build

OVERLAY = Path(__file__).resolve().parents[2] / "cluster" / "kuberay" / "overlays" / "small"
NAME, KEY = "from-manifest", "key-of-a-secret"


@pytest.fixture
def deployed(server: str, serve_config: ServeConfig) -> Iterator[str]:
    """The application of the manifest, with the paths of this machine, beside the one that runs here."""
    (service,) = [each for each in build(OVERLAY) if each["kind"] == "RayService"]
    config = yaml.safe_load(service["spec"]["serveConfigV2"])
    (app,) = config["applications"]
    app.update(name=NAME, route_prefix=f"/{NAME}", runtime_env={"env_vars": {"CLARA_API_KEY": KEY}})
    app["args"].update(model=serve_config.model, store=serve_config.store)
    dashboard = ray._private.worker.get_dashboard_url()
    ServeSubmissionClient(f"http://{dashboard}").deploy_applications(config)
    try:
        deadline = time.monotonic() + 180
        while (status := serve.status().applications[NAME]).status != "RUNNING":
            assert status.status != "DEPLOY_FAILED", status
            assert time.monotonic() < deadline, status
            time.sleep(0.2)
        yield f"{server}/{NAME}"
    finally:
        serve.delete(NAME)


def test_the_manifests_application_answers_who_has_a_key(deployed: str, http: httpx.Client) -> None:
    body = {"question": "Who built the lighthouse?"}
    assert httpx.post(f"{deployed}/v1/answers", json=body, timeout=60, trust_env=False).status_code == 401
    reply = httpx.post(
        f"{deployed}/v1/answers", json=body, headers={"Authorization": f"Bearer {KEY}"}, timeout=60, trust_env=False
    ).raise_for_status()
    # What the two have in common, model and store, gives the same answer; top_k is each one's own.
    assert reply.json()["sources"][:2] == http.post("/v1/answers", json=body).json()["sources"]
    assert len(reply.json()["sources"]) == 5
    assert http.get("/healthz").status_code == 200
