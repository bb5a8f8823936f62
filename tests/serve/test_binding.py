"""Who can reach a server that nobody configured: nobody but this machine."""

from __future__ import annotations

import ipaddress

import grpc
import psutil
import pytest
from ray.serve.generated.serve_pb2 import ASGIRequest
from ray.serve.generated.serve_pb2_grpc import ASGIServiceStub

Port = tuple[str, int]


def listening() -> dict[Port, str]:
    """Where this process and all that it started wait for connections, and the names of the processes."""
    me = psutil.Process()
    return {
        (connection.laddr.ip, connection.laddr.port): process.name()
        for process in (me, *me.children(recursive=True))
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }


def is_loopback(host: str) -> bool:
    address = ipaddress.ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def test_a_server_and_its_ray_listen_on_loopback_but_for_serves_replicas(server: str) -> None:
    found = listening()
    assert {"raylet", "gcs_server"} <= set(found.values())
    others = {port: name for port, name in found.items() if not is_loopback(port[0])}
    # Serve gives no choice of the interface on which its replicas hear each other ...
    assert all(name.startswith("ray::ServeReplica:") for name in others.values()), others
    # ... but they want Ray's token.
    for _, number in others:
        with grpc.insecure_channel(f"127.0.0.1:{number}") as channel:
            with pytest.raises(grpc.RpcError) as refused:
                ASGIServiceStub(channel).HandleRequest(ASGIRequest(), timeout=20)
            assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED
