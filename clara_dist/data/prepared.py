"""A stage's examples laid out for random access: checked once, read by every worker, never whole in memory.

::

    FOLDER/<content hash>.arrow     rows of the data, up to 32 MB each, uncompressed: they are memory-mapped
    FOLDER/examples.json            written last: the files in their order, the fingerprint, what was read and measured

Whatever the data was (compressed, an array, a data set of the hub), this is a plain copy of what its stage reads of it,
and lies in the run directory. Workers of a run in an object store keep their files in the cache of the machine.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clara_dist.config.training import StageConfig
from clara_dist.data.examples import Example, ExampleRow, ExamplesDigest, iter_example_rows
from clara_dist.data.rows import source_state
from clara_dist.errors import DataError
from clara_dist.store.cache import local_shards
from clara_dist.store.manifest import ShardInfo
from clara_dist.store.shard import checksum
from clara_dist.store.storage import ReadableFiles, Storage, open_storage

_RECORD = "examples.json"
_FORMAT_VERSION = 1
_PART_BYTES = 32 << 20
_SCHEMA = pa.schema(
    {
        "questions": pa.list_(pa.string()),
        "answers": pa.list_(pa.string()),
        "documents": pa.list_(pa.string()),
        "candidate_ids": pa.list_(pa.string()),
        "positives": pa.list_(pa.int32()),
        "task": pa.string(),
        "supervise_documents": pa.bool_(),
    }
)
# Sees every row before it is accepted; what it raises ends the reading, and nothing is recorded.
Observer = Callable[[str, ExampleRow | None], None]


@dataclass(frozen=True)
class _Part:
    file: str
    rows: int
    examples: int
    size_bytes: int
    checksum: str


class PreparedExamples(Sequence[Example]):
    """Examples by their position, read from memory-mapped files: what is held is a few bytes a file.

    Attributes:
        fingerprint: Content hash of the examples and their order (`ExamplesDigest`).
        report: What was measured when they were prepared.
    """

    def __init__(self, storage: Storage, record: Mapping[str, Any]) -> None:
        self.fingerprint = str(record["fingerprint"])
        self.report: dict[str, Any] = record["report"]
        parts = [_Part(**part) for part in record["parts"]]
        shards = [ShardInfo(p.file, p.rows, p.rows, 0, p.size_bytes, p.checksum, None, None) for p in parts]
        found = local_shards(storage, shards)
        for part in parts:
            if found.size_bytes(part.file) != part.size_bytes:
                raise DataError(f"{storage.url}/{part.file} is damaged", hint="delete the folder; it is made again")
        self._stops = list(accumulate(part.examples for part in parts))
        self._batches = [_mapped(found, part.file) for part in parts]

    def __len__(self) -> int:
        return self._stops[-1]

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        index %= len(self)
        number = bisect_right(self._stops, index)
        batch = self._batches[number]
        place = index - (self._stops[number - 1] if number else 0)
        questions = batch["questions"]
        row = int(np.searchsorted(questions.offsets.to_numpy(), place, side="right")) - 1
        return Example(
            question=questions.values[place].as_py(),
            answer=batch["answers"].values[place].as_py(),
            documents=tuple(batch["documents"][row].as_py()),
            candidate_ids=tuple(batch["candidate_ids"][row].as_py()),
            positives=tuple(batch["positives"][row].as_py()),
            task=batch["task"][row].as_py(),
            supervise_documents=batch["supervise_documents"][row].as_py(),
        )

    def candidate_ids(self, share: int = 0, n_shares: int = 1) -> Iterator[list[str]]:
        """The distinct candidates of one file after the other, of one share of the files."""
        for batch in self._batches[share::n_shares]:
            yield pc.unique(batch["candidate_ids"].values).to_pylist()


def _mapped(found: ReadableFiles, file: str) -> pa.RecordBatch:
    with found.open(file) as source:
        return pa.ipc.open_file(source).get_batch(0)


def prepare_examples(
    stage: StageConfig,
    folder: str,
    *,
    settings: Mapping[str, Any],
    observe: Observer,
    report: Callable[[], Mapping[str, Any]],
) -> PreparedExamples:
    """Lay a stage's examples out in a folder, unless they are there and their data has not been touched since.

    Reads the data once, from end to end, with flat memory.

    Args:
        stage: Names the data.
        folder: A directory or URL of the run's.
        settings: What the observer's verdict depends on besides the data; with others, the data is read again.
        observe: Sees every row and its place.
        report: Asked behind the last row for what goes into the record; may refuse the data, too.

    Raises:
        DataError: As `iter_example_rows`, or there is no example.
    """
    storage = open_storage(folder)
    identity = {
        "format_version": _FORMAT_VERSION,
        "source": [list(state) for state in source_state(stage.data)],
        "stage": stage.model_dump(mode="json", include={"stage", "format", "max_documents"}),
        "settings": dict(settings),
    }
    record = _read_record(storage)
    if record is not None and record["identity"] == json.loads(json.dumps(identity)):
        return PreparedExamples(storage, record)
    writer = _Writer(storage)
    for place, row in iter_example_rows(
        stage.data, stage.stage, layout=stage.format, max_documents=stage.max_documents
    ):
        observe(place, row)
        if row is not None:
            writer.add(row)
    parts = writer.finish()
    if not parts:
        raise DataError(f"{stage.data} has no examples")
    record = {
        "identity": identity,
        "fingerprint": writer.digest.hexdigest(),
        "report": dict(report()),
        "parts": [asdict(part) for part in parts],
    }
    storage.publish(_RECORD, json.dumps(record, indent=1).encode("utf-8"), exclusive=False)
    for file in set(storage.list_files("")) - {_RECORD, *(part.file for part in parts)}:
        storage.delete(file)
    return PreparedExamples(storage, record)


def open_examples(folder: str) -> PreparedExamples:
    """Examples that were prepared.

    Raises:
        DataError: There are none.
    """
    storage = open_storage(folder)
    record = _read_record(storage)
    if record is None:
        raise DataError(f"there are no prepared examples in {folder}", hint="start the run again: they are made first")
    return PreparedExamples(storage, record)


def _read_record(storage: Storage) -> dict[str, Any] | None:
    try:
        with storage.open(_RECORD) as file:
            record: dict[str, Any] = json.loads(file.read())
    except FileNotFoundError:
        return None
    return record


class _Writer:
    """Collects rows and publishes them as files; holds one file's rows."""

    def __init__(self, storage: Storage) -> None:
        self.digest = ExamplesDigest()
        self._storage = storage
        self._rows: list[ExampleRow] = []
        self._n_bytes = 0
        self._parts: list[_Part] = []

    def add(self, row: ExampleRow) -> None:
        self.digest.update(row.examples())
        self._rows.append(row)
        texts = (row.questions, row.answers, row.documents, row.candidate_ids)
        self._n_bytes += sum(len(text) + 8 for group in texts for text in group)
        if self._n_bytes >= _PART_BYTES:
            self._flush()

    def finish(self) -> list[_Part]:
        if self._rows:
            self._flush()
        return self._parts

    def _flush(self) -> None:
        columns = [[getattr(row, field.name) for row in self._rows] for field in fields(ExampleRow)]
        names = [field.name for field in fields(ExampleRow)]
        batch = pa.record_batch(
            [pa.array(column, _SCHEMA.field(name).type) for name, column in zip(names, columns, strict=True)], names
        )
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, batch.schema) as writer:
            writer.write_batch(batch)
        data = sink.getvalue()
        found = checksum(data)
        file = f"{found.rpartition(':')[2][:32]}.arrow"
        self._storage.publish(file, data, exclusive=False)
        examples = sum(len(row.questions) for row in self._rows)
        self._parts.append(_Part(file, len(self._rows), examples, data.size, found))
        self._rows, self._n_bytes = [], 0
