"""Manifests: the immutable list of what a store holds at one version, and the atomic step from one to the next."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from clara_dist.errors import CommitConflictError, CorruptStoreError, StoreError
from clara_dist.store.fingerprint import Fingerprint
from clara_dist.store.schema import StoreSchema
from clara_dist.store.storage import Storage

FORMAT_VERSION = 2
MANIFEST_FOLDER = "manifests"
SHARD_FOLDER = "shards"
DELETION_FOLDER = "deletions"
# What `store gc` leaves of a version's manifest. The name stays taken: a writer that was suspended since before that
# version must not be able to commit under its number.
TOMBSTONE = b'{"collected": true}\n'
_SHARD_FILE = re.compile(rf"{SHARD_FOLDER}/[A-Za-z0-9][A-Za-z0-9._-]{{0,199}}\.arrow")
_DELETION_FILE = re.compile(rf"{DELETION_FOLDER}/[0-9a-f]{{32}}\.arrow")


def shard_file(name: str) -> str:
    """Path of shard ``name`` inside a store.

    Raises:
        StoreError: The name has characters that do not belong in a file name on every platform.
    """
    file = f"{SHARD_FOLDER}/{name}.arrow"
    if not _SHARD_FILE.fullmatch(file):
        raise StoreError(
            "not a shard name", got=repr(name), expected="letters, digits, '.', '_' and '-', at most 200 characters"
        )
    return file


@dataclass(frozen=True)
class ShardInfo:
    """What the manifest says of one shard.

    Attributes:
        file: Path inside the store.
        rows: Rows in it, which are documents or passages of long ones; 0 is legal.
        documents: Documents that the rows come from.
        truncated: Rows whose text the model did not read to its end.
        size_bytes: Size of the file.
        checksum: ``sha256:`` and the digest of the file's bytes.
        min_doc_id: Smallest ``doc_id`` in code point order; None without rows.
        max_doc_id: Largest ``doc_id``.
    """

    file: str
    rows: int
    documents: int
    truncated: int
    size_bytes: int
    checksum: str
    min_doc_id: str | None
    max_doc_id: str | None


@dataclass(frozen=True)
class DeletionInfo:
    """What the manifest says of the file that lists the version's deleted rows.

    Attributes:
        file: Path inside the store.
        rows: Deleted rows, of all shards.
        size_bytes: Size of the file.
        checksum: ``sha256:`` and the digest of the file's bytes.
    """

    file: str
    rows: int
    size_bytes: int
    checksum: str


@dataclass(frozen=True)
class Manifest:
    """One version of a store, whole. Shards are listed in corpus order, which gives every document its row number.

    Attributes:
        version: 1, 2, ...
        parent: The version that this one was made from; None for the first.
        schema: Shape of the rows.
        fingerprint: Which model wrote the memories.
        shards: All shards of this version.
        writer: Free facts about the job that wrote it (JSON-able).
        created_at: UTC time, ISO 8601.
        commit_id: Unlike that of any other commit, so that a writer can tell its own manifest from another's.
        operation: What made the version: ``compress``, ``append``, ``delete``, ...
        deletions: The rows of the shards that are deleted; None: none.
        collecting: Files that a `store gc` is deleting: no version may list them until it has finished.
        oldest_version: Versions before this one were given up by a `store gc`.
    """

    version: int
    parent: int | None
    schema: StoreSchema
    fingerprint: Fingerprint
    shards: tuple[ShardInfo, ...]
    writer: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    commit_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    operation: str = "compress"
    deletions: DeletionInfo | None = None
    collecting: tuple[str, ...] = ()
    oldest_version: int = 1

    @property
    def n_documents(self) -> int:
        return sum(shard.rows for shard in self.shards) - self.n_deleted

    @property
    def n_deleted(self) -> int:
        return 0 if self.deletions is None else self.deletions.rows

    @property
    def files(self) -> set[str]:
        """All files that the version needs, its manifest apart."""
        return {shard.file for shard in self.shards} | ({self.deletions.file} if self.deletions else set())

    @property
    def size_bytes(self) -> int:
        return sum(shard.size_bytes for shard in self.shards)

    def to_json(self) -> str:
        """The manifest file's text; it ends with a checksum of itself, so that damage to the manifest shows too."""
        body: dict[str, Any] = {
            "format_version": FORMAT_VERSION,
            "version": self.version,
            "parent": self.parent,
            "operation": self.operation,
            "oldest_version": self.oldest_version,
            "created_at": self.created_at,
            "commit_id": self.commit_id,
            "writer": dict(self.writer),
            "fingerprint": dict(self.fingerprint.fields),
            "n_memory_tokens": self.schema.n_memory_tokens,
            "hidden_size": self.schema.hidden_size,
            "dtype": "float16",
            "metadata_columns": dict(self.schema.metadata_columns),
            "n_documents": self.n_documents,
            "deletions": None if self.deletions is None else asdict(self.deletions),
            "collecting": list(self.collecting),
            "shards": [asdict(shard) for shard in self.shards],
        }
        return _render(body)

    @classmethod
    def from_json(cls, data: bytes) -> Manifest:
        """Read a manifest file's bytes.

        Raises:
            StoreError: A sound manifest of another format.
            ValueError, KeyError, TypeError, AttributeError: The bytes are not exactly those that `to_json` wrote.
        """
        text = data.decode("utf-8")
        body = json.loads(text)
        body.pop("checksum")
        # Equal text covers every byte: the values through the checksum, the layout through the comparison.
        if _render(body) != text:
            raise ValueError("its checksum does not match its contents")
        if body["format_version"] != FORMAT_VERSION:
            raise StoreError(
                "the store has another format",
                got=f"format {body['format_version']}",
                expected=f"format {FORMAT_VERSION}",
                hint="open it with the clara_dist version that wrote it",
            )
        manifest = cls(
            version=body["version"],
            parent=body["parent"],
            schema=StoreSchema(body["n_memory_tokens"], body["hidden_size"], body["metadata_columns"]),
            fingerprint=Fingerprint(body["fingerprint"]),
            shards=tuple(ShardInfo(**shard) for shard in body["shards"]),
            writer=body["writer"],
            created_at=body["created_at"],
            commit_id=body["commit_id"],
            operation=body["operation"],
            deletions=None if body["deletions"] is None else DeletionInfo(**body["deletions"]),
            collecting=tuple(body["collecting"]),
            oldest_version=body["oldest_version"],
        )
        for shard in manifest.shards:
            if not _SHARD_FILE.fullmatch(shard.file):
                raise ValueError(f"it names {shard.file!r}, which is no shard of this store")
        if manifest.deletions is not None and not _DELETION_FILE.fullmatch(manifest.deletions.file):
            raise ValueError(f"it names {manifest.deletions.file!r}, which lists no deletions of this store")
        return manifest


def _render(body: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({**body, "checksum": digest}, indent=1) + "\n"


def manifest_file(version: int) -> str:
    """Path of a version's manifest inside a store."""
    return f"{MANIFEST_FOLDER}/{version:08d}.json"


def versions(storage: Storage) -> list[int]:
    """Numbers of all versions that ever were, ascending; the last one is current."""
    return [int(name[:8]) for name in storage.list_files(MANIFEST_FOLDER) if re.fullmatch(r"\d{8}\.json", name)]


def kept_versions(storage: Storage) -> list[int]:
    """Versions that can be opened, ascending; the last one is current.

    Raises:
        StoreError: There is no store.
        CorruptStoreError: The current version's manifest is damaged.
    """
    known = versions(storage)
    oldest = read_manifest(storage, known[-1] if known else None).oldest_version
    return [version for version in known if version >= oldest]


def read_manifest(storage: Storage, version: int | None = None) -> Manifest:
    """Read one version's manifest.

    Args:
        storage: The store.
        version: None means the current one.

    Raises:
        StoreError: There is no store, or no such version.
        CorruptStoreError: The manifest is damaged. An older version is never taken in its stead.
    """
    known = versions(storage)
    if not known:
        raise StoreError(f"there is no memory store at {storage.url}", hint="write one with `clara-dist compress`")
    if version is None:
        manifest = find_manifest(storage, known[-1])
        if manifest is None and versions(storage)[-1] != known[-1]:
            return read_manifest(storage)  # since it was listed newer ones came, and it was given up
        if manifest is not None:
            return manifest
        version = known[-1]
    if version not in known:
        raise StoreError(
            f"the store {storage.url} has no version {version}", got=version, expected=f"one of {known[0]}..{known[-1]}"
        )
    manifest = find_manifest(storage, version)
    if manifest is None:
        raise StoreError(
            f"version {version} of the store {storage.url} was given up by `clara-dist store gc`",
            hint="`clara-dist store versions` lists those that are there",
        )
    return manifest


def find_manifest(storage: Storage, version: int) -> Manifest | None:
    """`read_manifest` of a version that is known to be there; None if it was given up."""
    file = manifest_file(version)
    try:
        with storage.open(file) as source:
            data = source.read()
        if data == TOMBSTONE:
            return None
        manifest = Manifest.from_json(data)
        if manifest.version != version:
            raise ValueError(f"it says version {manifest.version}")
    except StoreError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise CorruptStoreError(
            f"the manifest {file} of the store {storage.url} is damaged",
            got=f"{type(error).__name__}: {error}",
            hint="restore the file from a backup, or open an older version",
        ) from error
    return manifest


def publish_manifest(storage: Storage, manifest: Manifest) -> None:
    """Make a version current: the one atomic step of a commit.

    Raises:
        CommitConflictError: The version exists already; the store is unchanged.
    """
    try:
        storage.publish(manifest_file(manifest.version), manifest.to_json().encode(), exclusive=True)
    except FileExistsError:
        raise CommitConflictError(
            f"another writer committed version {manifest.version} of the store {storage.url} first",
            hint="read the new version and commit on top of it",
        ) from None
