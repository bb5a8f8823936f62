"""``gs://``: Google's XML interface, which moto's S3 server speaks but for the words that the proxy translates.

The real service's credentials and its own kinds of trouble are not tested here.
"""

from __future__ import annotations

import json
from collections.abc import Callable

import numpy as np
import pytest

from clara_dist.errors import CommitConflictError
from clara_dist.store import MemoryStore, StoreSchema, commit, files, verify
from clara_dist.store.storage import open_storage
from fault_proxy import Fault, FaultProxy
from tiny_stores import FINGERPRINT, random_memory, write_rows

Url = Callable[[str], str]


@pytest.fixture
def gs_url(s3_url: Url, monkeypatch: pytest.MonkeyPatch) -> Url:
    account = {"disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(account))
    return lambda path: s3_url(path).replace("s3://", "gs://")


def test_a_store_in_a_google_bucket(gs_url: Url, proxy: FaultProxy) -> None:
    url, memory = gs_url("deep/store"), random_memory(4)
    shard = write_rows(url, "a", memory)  # type: ignore[arg-type]
    schema = StoreSchema(2, 8)
    commit(url, schema, FINGERPRINT, [shard])
    with pytest.raises(CommitConflictError):
        commit(url, schema, FINGERPRINT, [shard])
    assert np.array_equal(MemoryStore.open(url).take_memory(np.arange(4)), memory)
    assert verify(url).ok
    assert files.glob(gs_url("deep/**/*.arrow")) == [gs_url("deep/store/shards/a.arrow")]


@pytest.mark.parametrize("fault", ["lost_answer", "reset_after", "slow_down"])
def test_lost_answers_and_races(gs_url: Url, proxy: FaultProxy, fault: Fault) -> None:
    storage = open_storage(gs_url("store"))
    rule = proxy.fail(fault, "^PUT")
    storage.publish("manifest", b"ours", exclusive=True)
    assert rule.times == 0
    with pytest.raises(FileExistsError):
        storage.publish("manifest", b"theirs", exclusive=True)
    with storage.open("manifest") as source:
        assert source.read() == b"ours"
    storage.delete("manifest")
    assert storage.list_files("") == []
