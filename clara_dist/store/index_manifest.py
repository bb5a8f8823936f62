"""Manifests of approximate indexes: what an index of one store version is made of, and the digests of its files.

An index has no rows of its own: for each shard it has one small code a row of the shard's file, deleted ones included.
A shard never changes, so its codes never do: the index of the next version has those of all shards that both have.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import pyarrow as pa

from clara_dist.errors import CorruptStoreError
from clara_dist.store.shard import checksum
from clara_dist.store.storage import Storage

INDEX_FOLDER = "index"
_FORMAT_VERSION = 1
_FILE = re.compile(rf"{INDEX_FOLDER}/[0-9a-f]{{32}}\.(faiss|mean|codes)")


@dataclass(frozen=True)
class IndexFile:
    """One file of an index: its path inside the store, its size, ``sha256:`` and the digest of its bytes."""

    file: str
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Measured:
    """What the builder measured of an index against exact search.

    Attributes:
        recall: Share of the exact best ``k`` that the index finds.
        k: Documents a query.
        n_queries: Queries that it was measured with.
        queries: Where they came from.
        bytes_per_query: Read for one query, codes and memories.
        exact_bytes: Read by an exact search for one query.
    """

    recall: float
    k: int
    n_queries: int
    queries: str
    bytes_per_query: int
    exact_bytes: int


@dataclass(frozen=True)
class IndexManifest:
    """The index of one store version.

    Attributes:
        version: Of the store.
        commit_id: Of that version: a store that was deleted and made again has other versions of the same number.
        factory: FAISS's index-factory string.
        rescored: Rows whose exact score is computed, a query.
        codec: The trained FAISS index, without rows.
        mean: float32 mean of the unit memories, which codes leave out.
        codes: Shard file -> its codes.
        measured: None while the index is being built: such an index is not searched.
    """

    version: int
    commit_id: str
    factory: str
    rescored: int
    codec: IndexFile
    mean: IndexFile
    codes: Mapping[str, IndexFile] = field(default_factory=dict)
    measured: Measured | None = None

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self._parts)

    @property
    def files(self) -> set[str]:
        """Paths inside the store, that of this manifest among them."""
        return {_manifest_file(self.version), *(file.file for file in self._parts)}

    @property
    def _parts(self) -> tuple[IndexFile, ...]:
        return (self.codec, self.mean, *self.codes.values())


def _manifest_file(version: int) -> str:
    return f"{INDEX_FOLDER}/{version:08d}.json"


def indexed_versions(storage: Storage) -> list[int]:
    """Store versions that have an index, complete or not, ascending."""
    return [int(name[:8]) for name in storage.list_files(INDEX_FOLDER) if re.fullmatch(r"\d{8}\.json", name)]


def read_index_manifest(storage: Storage, version: int) -> IndexManifest | None:
    """The index of a store version; None if there is none.

    Raises:
        CorruptStoreError: The manifest is damaged.
    """
    file = _manifest_file(version)
    if storage.size_bytes(file) is None:
        return None
    try:
        with storage.open(file) as source:
            body = json.loads(source.read())
        if body.pop("format_version") != _FORMAT_VERSION:
            raise ValueError("it has another format")
        measured = body.pop("measured")
        manifest = IndexManifest(
            codec=IndexFile(**body.pop("codec")),
            mean=IndexFile(**body.pop("mean")),
            codes={shard: IndexFile(**codes) for shard, codes in body.pop("codes").items()},
            measured=None if measured is None else Measured(**measured),
            **body,
        )
        for part in manifest._parts:
            if not _FILE.fullmatch(part.file):
                raise ValueError(f"it names {part.file!r}, which is no file of an index")
        if manifest.version != version:
            raise ValueError(f"it says version {manifest.version}")
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CorruptStoreError(
            f"the index manifest {file} of the store {storage.url} is damaged",
            got=f"{type(error).__name__}: {error}",
            hint="delete the store's folder index/ and build the index again",
        ) from error
    return manifest


def publish_index_manifest(storage: Storage, manifest: IndexManifest) -> None:
    """Make the index of a version visible, in place of one that it may have had."""
    body = {"format_version": _FORMAT_VERSION, **asdict(manifest)}
    storage.publish(_manifest_file(manifest.version), (json.dumps(body, indent=1) + "\n").encode(), exclusive=False)


def publish_index_file(storage: Storage, kind: str, data: bytes) -> IndexFile:
    """Write one file of an index; ``kind`` is faiss, mean or codes."""
    file = f"{INDEX_FOLDER}/{uuid.uuid4().hex}.{kind}"
    buffer = pa.py_buffer(data)
    storage.publish(file, buffer, exclusive=True)
    return IndexFile(file, buffer.size, checksum(buffer))


def read_index_file(storage: Storage, info: IndexFile) -> pa.Buffer:
    """The bytes of a file of an index, which are those of its digest: nothing parses others.

    Raises:
        CorruptStoreError: The file is missing or its bytes are others.
    """
    try:
        with storage.open(info.file) as source:
            # Bytes of its own: a mapped file could change between the digest and the reading.
            data = pa.py_buffer(source.read())
        if (data.size, checksum(data)) != (info.size_bytes, info.checksum):
            raise ValueError(f"{data.size} bytes with checksum {checksum(data)}, the manifest says {info.checksum}")
    except (OSError, ValueError) as error:
        raise CorruptStoreError(
            f"the index file {info.file} of the store {storage.url} is missing or damaged",
            got=str(error),
            hint="delete the store's folder index/ and build the index again",
        ) from error
    return data
