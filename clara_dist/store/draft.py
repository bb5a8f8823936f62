"""A shard's file that is laid out before its memories are known, so that they are computed straight into its bytes."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from clara_dist.store.schema import StoreSchema, memory_norms, require_float16_range
from clara_dist.store.shard import serialize


class ShardDraft:
    """The bytes of a shard with room for its memories.

    A table that is filled and then serialised holds every memory twice; here they are written once, where the file
    will have them.

    Args:
        table: What `StoreSchema.to_table` gave without memories.
        schema: The store's.

    Attributes:
        memory_SMD: float16, writable: fill it, then call `finish`.
    """

    def __init__(self, table: pa.Table, schema: StoreSchema) -> None:
        self._data = serialize(table)
        self.doc_ids: pa.ChunkedArray = table.column("doc_id")
        # The columns of the bytes that were just laid out are views of them, which is how their places are found.
        batch = pa.ipc.open_file(pa.BufferReader(self._data)).get_batch(0)
        memory = self._writable(batch.column("memory").storage.flatten(), np.float16)
        self.memory_SMD = memory.reshape(table.num_rows, schema.n_memory_tokens, schema.hidden_size)
        self._norms_S = self._writable(batch.column("norm"), np.float32)

    def finish(self) -> pa.Buffer:
        """The file's bytes, with the norms of the memories in place.

        Raises:
            StoreError: A memory is not finite in float16; the message names the document.
        """
        require_float16_range(self.memory_SMD, self.memory_SMD, self.doc_ids)
        self._norms_S[:] = memory_norms(self.memory_SMD)
        return self._data

    def _writable(self, column: pa.Array, dtype: npt.DTypeLike) -> np.ndarray:
        values = column.buffers()[1]
        return np.frombuffer(self._data, dtype, count=len(column), offset=values.address - self._data.address)
