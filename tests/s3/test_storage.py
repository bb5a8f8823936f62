"""One object store as the memory store's storage: what is asked of it, and what it does when requests fail."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from clara_dist.errors import StoreError
from clara_dist.store import remote
from clara_dist.store.storage import open_storage
from fault_proxy import Fault, FaultProxy

Url = Callable[[str], str]


def test_files_come_and_go(s3_url: Url) -> None:
    storage = open_storage(s3_url("deep/store"))
    assert storage.list_files("shards") == []
    assert storage.size_bytes("shards/a") is None
    with pytest.raises(FileNotFoundError, match=r"no object s3://bucket\d+/deep/store/shards/a$"):
        storage.open("shards/a")
    storage.publish("shards/b", b"12345", exclusive=True)
    storage.publish("shards/a", b"", exclusive=False)
    storage.publish("shards/.marker", b"x", exclusive=False)
    storage.publish("shards/below/c", b"x", exclusive=False)
    assert storage.list_files("shards") == ["a", "b"]
    assert storage.list_files("shar") == []
    assert (storage.size_bytes("shards/b"), storage.size_bytes("shards/a")) == (5, 0)
    with storage.open("shards/b") as source:
        source.seek(2)
        assert (source.read(2), source.tell(), source.read(), source.read()) == (b"34", 4, b"5", b"")
    with storage.open("shards/a") as source:
        assert source.read() == b""
    storage.publish("shards/b", b"other", exclusive=False)
    with storage.open("shards/b") as source:
        assert source.read_buffer().to_pybytes() == b"other"
    storage.delete("shards/b")
    storage.delete("shards/b")
    assert storage.list_files("shards") == ["a"]


def test_a_listing_has_all_pages(s3_url: Url, proxy: FaultProxy) -> None:
    storage = open_storage(s3_url("many"))
    names = [f"{i:04d}" for i in range(1003)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: storage.publish(f"shards/{name}", b"", exclusive=False), names))
    assert storage.list_files("shards") == names
    assert proxy.requests("continuation-token") == 1


def test_of_many_that_publish_one_file_one_wins(s3_url: Url) -> None:
    storage = open_storage(s3_url("race"))

    def publish(writer: int) -> bool:
        try:
            storage.publish("manifest", f"writer {writer}".encode(), exclusive=True)
        except FileExistsError:
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(publish, range(8)))
    assert sum(won) == 1
    with storage.open("manifest") as source:
        assert source.read() == f"writer {won.index(True)}".encode()


@pytest.mark.parametrize("exclusive", [True, False])
@pytest.mark.parametrize("fault", ["lost_answer", "reset_after", "server_error", "slow_down", "reset"])
def test_a_put_whose_answer_says_nothing_succeeds(
    s3_url: Url, proxy: FaultProxy, fault: Fault, exclusive: bool
) -> None:
    storage = open_storage(s3_url("puts"))
    rule = proxy.fail(fault, "^PUT", times=2)
    storage.publish("file", b"ours" * 1000, exclusive=exclusive)
    assert rule.times == 0
    with storage.open("file") as source:
        assert source.read() == b"ours" * 1000


@pytest.mark.parametrize("fault", ["server_error", "slow_down", "reset", "lost_answer"])
def test_a_put_that_is_retried_does_not_take_over_what_another_wrote_meanwhile(
    s3_url: Url, s3_port: int, proxy: FaultProxy, fault: Fault
) -> None:
    url = s3_url("store")
    other = open_storage(url.replace(str(proxy.port), str(s3_port)))
    if fault == "lost_answer":  # here the other was first, and the answer that said so was lost
        other.publish("file", b"theirs", exclusive=True)
        proxy.fail(fault, "^PUT")
    else:
        proxy.fail(fault, "^PUT", before=lambda: other.publish("file", b"theirs", exclusive=True))
    with pytest.raises(FileExistsError):
        open_storage(url).publish("file", b"ours!!", exclusive=True)
    with other.open("file") as source:
        assert source.read() == b"theirs"


@pytest.mark.parametrize("fault", ["cut_body", "server_error", "slow_down", "reset"])
def test_a_read_that_fails_midway_gives_every_byte(s3_url: Url, proxy: FaultProxy, fault: Fault) -> None:
    storage = open_storage(s3_url("reads"))
    data = bytes(range(256)) * 4096
    storage.publish("file", data, exclusive=True)
    rule = proxy.fail(fault, "^GET", times=2)
    with storage.open("file") as source:
        assert source.read() == data
    assert rule.times == 0


@pytest.mark.parametrize("fault", ["server_error", "lost_answer", "reset", "cut_body"])
def test_listing_and_deleting_are_retried(s3_url: Url, proxy: FaultProxy, fault: Fault) -> None:
    storage = open_storage(s3_url("more"))
    storage.publish("shards/a", b"1", exclusive=True)
    proxy.fail(fault, r"^GET .*list-type")
    assert storage.list_files("shards") == ["a"]
    proxy.fail(fault, "^(POST|DELETE)")
    storage.delete("shards/a")
    assert storage.list_files("shards") == []


def test_a_service_that_does_not_answer_is_asked_again(
    s3_url: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(remote._CLIENT, "read_timeout", timedelta(seconds=1))
    storage = open_storage(s3_url("slow"))
    rules = [proxy.fail("hang", "^PUT"), proxy.fail("hang", "^GET"), proxy.fail("hang", "^HEAD")]
    storage.publish("file", b"ours", exclusive=True)
    assert storage.size_bytes("file") == 4
    with storage.open("file") as source:
        assert source.read() == b"ours"
    assert [rule.times for rule in rules] == [0, 0, 0]


def test_a_bucket_that_is_not_there_is_told(s3_url: Url) -> None:
    storage = open_storage(s3_url("store").replace("//bucket", "//absent-bucket"))
    with pytest.raises(StoreError, match="NoSuchBucket"):
        storage.list_files("manifests")
    with pytest.raises(StoreError, match=r"cannot write s3://absent-bucket\d+/store/file") as raised:
        storage.publish("file", b"", exclusive=True)
    assert raised.value.hint is not None
    assert "AWS_REGION" in raised.value.hint


def test_the_endpoint_may_come_from_the_environment(
    s3_url: Url, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(s3_url("store")).publish("file", b"1", exclusive=True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
    assert open_storage(s3_url("store").partition("?")[0]).size_bytes("file") == 1


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("s3://AKIA123:hush@bucket/store", "carries credentials"),
        ("s3://bucket/store?secret_key=hush&region=x", "options secret_key"),
        ("s3:///store", "s3://BUCKET/PATH"),
        ("hdfs://host/store", "expected: a path, s3:// or gs://"),
        ("gs://token:hush@bucket/store", "carries credentials"),
    ],
)
def test_what_a_url_may_not_be(url: str, message: str) -> None:
    with pytest.raises(StoreError, match=message) as raised:
        open_storage(url)
    assert "hush" not in str(raised.value)
    assert "AKIA" not in str(raised.value)
