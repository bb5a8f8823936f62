"""Every series that the dashboard and the alerts name is exported by a running system, with the labels they name."""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from pathlib import Path

import httpx
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray.dashboard.modules.reporter.reporter_agent import METRICS_GAUGES

from clara_dist.config.compress import CompressConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.compress_job import compress
from clara_dist.distributed.serve_gauges import RetrieverMetrics
from clara_dist.store.cache import CacheCounts

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
# Prometheus makes these itself.
OF_PROMETHEUS = {"up": {"job"}}
WORDS = {"sum", "by", "rate", "increase", "min", "count", "histogram_quantile", "le"}

Series = dict[str, set[str]]


def expressions() -> list[str]:
    dashboard = json.loads((CLUSTER / "grafana" / "dashboard.json").read_text(encoding="utf-8"))
    alerts = yaml.safe_load((CLUSTER / "alerts.yaml").read_text(encoding="utf-8"))
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", ())]
    return shown + [rule["expr"] for group in alerts["groups"] for rule in group["rules"]]


def named(expression: str) -> Series:
    """Series of a query, each with the labels that it is selected or grouped by."""
    plain = re.sub(r"\[[^\]]*\]", "", expression)
    groups = re.findall(r"by \(([^)]*)\)", plain)
    plain = re.sub(r"by \([^)]*\)", "", plain)
    grouped = {label for group in groups for label in group.replace(" ", "").split(",")}
    found: Series = {}
    for name, selector in re.findall(r"\b([a-z_]\w*)\b(?:\{([^}]*)\})?", re.sub(r'"[^"]*"', '""', plain)):
        if name not in WORDS:
            found[name] = found.get(name, grouped) | set(re.findall(r"(\w+)\s*[=!]", selector))
    return found


def exported(http: httpx.Client) -> Series:
    """Names of all samples that the API and Ray's nodes export, with their labels."""
    texts = [http.get("/metrics").text]
    for node in ray.nodes():
        if node["Alive"]:
            address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
            texts.append(httpx.get(address, trust_env=False, timeout=30).text)
    found: Series = defaultdict(set)
    for text in texts:
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found[sample.name] |= set(sample.labels)
    return found


def test_queries_name_what_is_exported(http: httpx.Client, serve_config: ServeConfig, tmp_path: Path) -> None:
    wanted: Series = defaultdict(set)
    for expression in expressions():
        for name, labels in named(expression).items():
            wanted[name] |= labels
    assert {"clara_requests_total", "ray_clara_compress_documents_total", "ray_clara_engine_running"} <= set(wanted)
    assert wanted.pop("up") == OF_PROMETHEUS["up"]
    # Where there is no GPU Ray exports nothing of it: its own list must have the name.
    for name in [name for name in wanted if name.startswith(("ray_node_gram", "ray_node_gpus"))]:
        assert name.removeprefix("ray_") in METRICS_GAUGES
        del wanted[name]

    http.post("/v1/answers", json={"question": "Who built the lighthouse?"}).raise_for_status()
    (tmp_path / "corpus.jsonl").write_text('{"doc_id": "a", "text": "rain gauges"}\n{broken\n', encoding="utf-8")
    compress(
        CompressConfig(
            corpus=(str(tmp_path / "corpus.jsonl"),),
            model=serve_config.model,
            store=str(tmp_path / "store"),
            max_rejects=0.9,
        )
    )
    # The store that is served here is local, and no shard of it is ever in a cache.
    RetrieverMetrics().observe(CacheCounts(hits=2, misses=1))
    deadline = time.monotonic() + 120  # Ray asks its processes every few seconds, Serve its replicas every ten
    while True:
        found = exported(http)
        missing = {
            name: labels - found[name] for name, labels in wanted.items() if not labels <= found.get(name, set())
        }
        missing |= {name: labels for name, labels in wanted.items() if name not in found}
        if not missing:
            return
        assert time.monotonic() < deadline, missing


def test_units_are_in_the_names(http: httpx.Client) -> None:
    for family in text_string_to_metric_families(http.get("/metrics").text):
        assert family.name.startswith("clara_")
        assert family.type != "histogram" or family.name.endswith("_seconds")
