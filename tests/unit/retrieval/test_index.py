"""Approximate search against exact search: recall, filters, deletions, appends, killed builds, damaged files."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.config.index import IndexConfig
from clara_dist.errors import CorruptStoreError, RetrievalError
from clara_dist.retrieval import index_build
from clara_dist.retrieval.index import IndexedSearcher, open_index, open_searcher
from clara_dist.retrieval.index_build import build_index
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store import MemoryStore, StoreSchema, append_shards, collect, commit, compact, delete
from tiny_stores import FINGERPRINT, build_store, write_rows

M, D, N = 2, 96, 1500


def clustered(n: int, seed: int = 0) -> np.ndarray:
    """Memories near a 16-dimensional space, far from the origin, as a language model's are."""
    generator = np.random.default_rng(seed)
    basis = np.random.default_rng(99).standard_normal((17, M * D))
    latent = np.concatenate([generator.standard_normal((n, 16)), np.full((n, 1), 3.0)], axis=1)
    noise = 0.02 * generator.standard_normal((n, M * D))
    return ((latent @ basis + noise) * generator.uniform(0.1, 4, (n, 1))).reshape(n, M, D).astype(np.float16)


def queries(n: int = 12) -> torch.Tensor:
    return torch.from_numpy(clustered(n, seed=5).astype(np.float32).reshape(n, -1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    build_store(tmp_path, clustered(N), [600, 0, 900])
    return tmp_path


def build(path: Path, **settings: object) -> list[str]:
    said: list[str] = []
    build_index(IndexConfig(store=str(path), **settings), progress=said.append)
    return said


@pytest.mark.parametrize("factory", [None, "OPQ16_64,PQ16x6", "PCA16,IVF4,SQ8"])
def test_scores_are_exact_and_the_default_finds_nearly_all(path: Path, factory: str | None) -> None:
    build(path, factory=factory, min_recall=0.99 if factory is None else 0.5)
    store = MemoryStore.open(path)
    searcher = open_index(store)
    found, exact = searcher.search(queries(), 20), ExactSearcher(store).search(queries(), 20)
    hits = (found.rows_BK[:, :, None] == exact.rows_BK[:, None, :]).any(1)
    assert hits.double().mean() >= (0.99 if factory is None else 0.5)
    both = found.rows_BK == exact.rows_BK
    assert torch.equal(found.scores_BK[both], exact.scores_BK[both])
    measured = searcher.manifest.measured
    assert measured is not None
    assert measured.exact_bytes == N * (2 * M * D + 4)
    if factory is None:  # 75 of 1,500 rows, and codes of 16 bytes
        assert searcher.manifest.factory == "PCA16,SQ8"
        assert measured.bytes_per_query == N * 16 + 75 * (2 * M * D + 4)
        assert measured.bytes_per_query < measured.exact_bytes / 10


def test_filters_and_deleted_rows(path: Path) -> None:
    build(path)
    store = MemoryStore.open(path)
    rows = np.arange(1, N, 3)
    found = open_index(store, rows).search(queries(), 20)
    assert torch.equal(found.rows_BK, ExactSearcher(store, rows).search(queries(), 20).rows_BK)
    best = ExactSearcher(store).search(queries(), 3).rows_BK.unique().numpy()
    delete(path, doc_ids=store.doc_ids(best))
    assert build(path) == []  # every shard has its codes
    left = MemoryStore.open(path)
    found = open_index(left).search(queries(), 20)
    assert torch.equal(found.rows_BK, ExactSearcher(left).search(queries(), 20).rows_BK)
    assert not {f"doc-{row}" for row in best} & set(left.doc_ids(found.rows_BK.numpy()))


def test_few_rows_are_searched_exactly(path: Path) -> None:
    build(path, factory="PCA2,SQ4", min_recall=0)
    store = MemoryStore.open(path)
    rows = np.arange(100, 175)
    found = open_index(store, rows).search(queries(), 60)
    assert torch.equal(found.rows_BK, ExactSearcher(store, rows).search(queries(), 60).rows_BK)
    with pytest.raises(RetrievalError, match="cannot find 76 documents"):
        open_index(store, rows).search(queries(), 76)


def test_an_append_is_encoded_alone(path: Path) -> None:
    build(path)
    info = write_rows(path, "more-00000", clustered(300, seed=8), first=N)
    append_shards(path, StoreSchema(M, D), FINGERPRINT, [info])
    with pytest.raises(RetrievalError, match=r"version 2 .* no complete index"):
        open_index(MemoryStore.open(path))
    assert isinstance(open_searcher(MemoryStore.open(path), "auto"), ExactSearcher)
    assert build(path) == ["shard 4 of 4: 300 rows, 4,800 bytes"]
    assert open_index(MemoryStore.open(path, 1)).n_rows == N
    store = MemoryStore.open(path)
    query = torch.from_numpy(store.take_memory(np.array([N + 7])).astype(np.float32))
    assert open_index(store).search(query, 1).rows_BK.item() == N + 7


def test_a_killed_build_goes_on(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = index_build._encode

    def dies_at_the_last(codec: object, mean_X: np.ndarray, shard: object) -> bytes:
        if shard.row_offset:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return encode(codec, mean_X, shard)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(index_build, "_encode", dies_at_the_last)
        with pytest.raises(KeyboardInterrupt):
            build(path)
    with pytest.raises(RetrievalError, match="no complete index"):
        open_searcher(MemoryStore.open(path), "required")
    said = build(path)
    assert [line.split(":")[0] for line in said] == ["shard 3 of 3"]
    assert isinstance(open_searcher(MemoryStore.open(path), "required"), IndexedSearcher)


def test_what_finds_too_little_is_not_used(path: Path) -> None:
    with pytest.raises(RetrievalError, match=r"finds too little[\s\S]*at least 0.99"):
        build(path, factory="PCA2,SQ4")
    assert isinstance(open_searcher(MemoryStore.open(path), "auto"), ExactSearcher)
    with pytest.raises(RetrievalError, match=r"FAISS cannot[\s\S]*HNSW16"):
        build(path, factory="HNSW16")


@pytest.mark.parametrize("kind", ["faiss", "codes"])
def test_damaged_files_are_never_read(path: Path, kind: str) -> None:
    build(path)
    file = max((path / "index").glob(f"*.{kind}"), key=lambda file: file.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=file.name):
        open_index(MemoryStore.open(path))


def test_a_manifest_reaches_no_file_outside(path: Path) -> None:
    build(path)
    file = path / "index" / "00000001.json"
    body = json.loads(file.read_text())
    body["codec"]["file"] = "index/../../secret.faiss"
    file.write_text(json.dumps(body))
    with pytest.raises(CorruptStoreError, match="no file of an index"):
        open_index(MemoryStore.open(path))


def test_compacted_stores_and_copies_of_a_searcher(path: Path) -> None:
    build(path)
    delete(path, doc_ids=[f"doc-{row}" for row in range(0, 600, 2)])
    compact(path)
    assert len(build(path)) >= 1
    searcher = open_index(MemoryStore.open(path))
    assert searcher.n_rows == N - 300
    copied = pickle.loads(pickle.dumps(searcher)).search(queries(), 20)
    assert torch.equal(copied.rows_BK, searcher.search(queries(), 20).rows_BK)


def test_a_collection_takes_what_the_index_of_no_kept_version_needs(path: Path) -> None:
    def files() -> set[str]:
        return {f"index/{file.name}" for file in (path / "index").iterdir()}

    build(path)
    first = files()
    info = write_rows(path, "more-00000", clustered(300, seed=8), first=N)
    append_shards(path, StoreSchema(M, D), FINGERPRINT, [info])
    build(path)
    both = files()
    assert collect(path, dry_run=True, keep_versions=1).files == ()  # young
    assert collect(path, dry_run=True, keep_versions=2, grace_s=0).files == ()
    # The second version has the codes of the first: only the manifest is of no use.
    assert collect(path, keep_versions=1, grace_s=0).files == ("index/00000001.json",)
    searcher = open_index(MemoryStore.open(path, 2))
    assert searcher.search(queries(), 20).rows_BK.shape == (12, 20)
    build(path, retrain=True)  # of version 4: the collection has made two
    retrained = files() - both
    old = first | both
    assert (
        set(collect(path, keep_versions=1, grace_s=0).files) == set()
    )  # version 2 is the newest that is no collection
    delete(path, doc_ids=["doc-3"])
    build(path)
    given_up = set(collect(path, keep_versions=1, grace_s=0).files)
    assert old - {"index/00000001.json"} <= given_up
    assert given_up & retrained == {"index/00000004.json"}
    assert open_index(MemoryStore.open(path, 5)).n_rows == N + 299


def test_a_collection_in_the_middle_of_a_build_takes_no_codes_from_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(path)
    info = write_rows(path, "more-00000", clustered(300, seed=8), first=N)
    append_shards(path, StoreSchema(M, D), FINGERPRINT, [info])
    encode = index_build._encode

    def collects(codec: object, mean_X: np.ndarray, shard: object) -> bytes:
        collect(path, keep_versions=1, grace_s=0)
        return encode(codec, mean_X, shard)  # type: ignore[arg-type]

    monkeypatch.setattr(index_build, "_encode", collects)
    assert build(path) == ["shard 4 of 4: 300 rows, 4,800 bytes"]
    assert not (path / "index" / "00000001.json").exists()
    assert open_index(MemoryStore.open(path, 2)).n_rows == N + 300


def test_an_index_of_another_store_of_that_name_is_not_used(path: Path) -> None:
    build(path)
    (path / "manifests" / "00000001.json").unlink()
    infos = [write_rows(path, "other-00000", clustered(200, seed=3))]
    commit(path, StoreSchema(M, D), FINGERPRINT, infos)
    assert isinstance(open_searcher(MemoryStore.open(path), "auto"), ExactSearcher)
