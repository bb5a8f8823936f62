"""A server spread over two nodes, one of which is killed under load."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
import ray
from ray.cluster_utils import Cluster

from chaos_corpus import undisturbed, write_config
from clara_dist.config.serve import ServeConfig
from clara_dist.distributed.serve_app import APP_NAME, serving

N_CLIENTS = 4
# How a head finds out that a node is gone: Ray's own 5 misses, 3 s apart, would leave what was sent there waiting for
# 15 s, and its clients with it.
QUICK = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head without CPUs."""
    head = {"num_cpus": 0, "include_dashboard": False, "_system_config": QUICK}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


@dataclass
class Load:
    """Clients that ask one question after the other, without trying again.

    Attributes:
        ended: Per request when it ended, its status (0: no answer at all), and its answer's text.
    """

    url: str
    ended: list[tuple[float, int, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Load:
        self._threads = [threading.Thread(target=self._ask) for _ in range(N_CLIENTS)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join()

    def _ask(self) -> None:
        with httpx.Client(base_url=self.url, timeout=120, trust_env=False) as http:
            while not self.over.is_set():
                try:
                    reply = http.post("/v1/answers", json={"question": "When was the lighthouse built?"})
                    self.ended.append((time.monotonic(), reply.status_code, reply.text))
                except httpx.TransportError as error:
                    self.ended.append((time.monotonic(), 0, str(error)))

    def wait_for(self, n_more: int) -> None:
        """Until so many more requests were answered well."""
        n_wanted = self.n_good + n_more
        deadline = time.monotonic() + 120
        while self.n_good < n_wanted:
            assert time.monotonic() < deadline, self.ended[-5:]
            time.sleep(0.05)

    @property
    def n_good(self) -> int:
        return sum(status == 200 for _, status, _ in list(self.ended))


def replica_nodes() -> dict[str, list[str]]:
    """Where the replicas of each deployment run."""
    controller = ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    details = ray.get(controller.get_serve_instance_details.remote())
    deployments = details["applications"][APP_NAME]["deployments"]
    return {name: [replica["node_id"] for replica in each["replicas"]] for name, each in deployments.items()}


def test_a_server_outlives_a_node(cluster: Cluster, tiny_clara_dir: Path, tmp_path: Path) -> None:
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    cluster.wait_for_nodes()
    corpus = write_config(tmp_path / "job", tiny_clara_dir, n_documents=40, rows_per_shard=20, workers=1)
    undisturbed(corpus, Path(corpus.store))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        model=corpus.model,
        store=corpus.store,
        port=port,
        top_k=2,
        max_tokens=4,
        engine_replicas=2,
        retriever_replicas=2,
        ingress_replicas=2,
        # All of them fit on one node, too: what is lost has a place to come back to.
        engine_cpus=0.3,
        retriever_cpus=0.05,
        device="cpu",
    )
    with serving(config, address=cluster.address) as url, Load(url) as load:
        load.wait_for(100)
        before = replica_nodes()
        cluster.remove_node(nodes[0], allow_graceful=False)
        killed = time.monotonic()
        load.wait_for(500)
        after = [(when - killed, status, text) for when, status, text in load.ended if when > killed]
        good = [when for when, status, _ in after if status == 200]
    gaps = [later - earlier for earlier, later in zip([0.0, *good], good, strict=False)]
    bad = [(status, text) for _, status, text in after if status != 200]
    figures = {
        "requests": len(load.ended),
        "errors": len(bad),
        "longest time without an answer, s": round(max(gaps), 2),
    }
    (tmp_path / "figures.json").write_text(json.dumps(figures), encoding="utf-8")
    print(figures, bad)
    assert all(len(set(where)) == 2 for where in before.values()), f"every deployment is on both nodes: {before}"
    assert len(bad) <= 0.01 * len(load.ended)
    assert len({json.loads(text)["answer"] for _, status, text in load.ended if status == 200}) == 1
