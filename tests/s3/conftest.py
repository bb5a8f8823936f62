"""A real S3 server (moto) on loopback, and a proxy before it that can fail."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from fault_proxy import FaultProxy

_ENVIRONMENT = {"AWS_ACCESS_KEY_ID": "test-key", "AWS_SECRET_ACCESS_KEY": "test-secret", "AWS_REGION": "us-east-1"}
_names = itertools.count()


@pytest.fixture(scope="session")
def s3_port() -> Iterator[int]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()[1]
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def credentials() -> Iterator[None]:
    """For this process and for the Ray workers that it starts."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in _ENVIRONMENT.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def proxy(s3_port: int) -> Iterator[FaultProxy]:
    proxy = FaultProxy(s3_port)
    yield proxy
    proxy.close()


@pytest.fixture
def s3_url(proxy: FaultProxy, s3_port: int, credentials: None) -> Callable[[str], str]:
    """Makes URLs of one new bucket, through the proxy."""
    bucket = f"bucket{next(_names)}"
    boto3.client("s3", endpoint_url=f"http://127.0.0.1:{s3_port}", region_name="us-east-1").create_bucket(Bucket=bucket)
    return lambda path: f"s3://{bucket}/{path}?endpoint_override=127.0.0.1:{proxy.port}&scheme=http"


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of this test's own."""
    monkeypatch.setenv("CLARA_CACHE_DIR", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.delenv("CLARA_CACHE_MAX_BYTES", raising=False)
