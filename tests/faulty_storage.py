"""A storage whose n-th operation is the process's last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from clara_dist.store.storage import Storage


class Killed(BaseException):
    """Stands for SIGKILL: no `except Exception` sees it."""


class FaultyStorage:
    """Passes everything on to a storage, and dies before or after one operation.

    Args:
        storage: What holds the files.
        last: Number of the operation that is not survived, from 0 on; None: never dies.
        done: Whether it takes effect first.
        before: Called before every operation with its number and name.
    """

    def __init__(
        self,
        storage: Storage,
        last: int | None = None,
        *,
        done: bool = False,
        before: Callable[[int, str], None] | None = None,
    ) -> None:
        self._storage = storage
        self._last = last
        self._done = done
        self._before = before
        self.url = storage.url
        self.n_operations = 0

    def _run(self, name: str, *arguments: Any, **options: Any) -> Any:
        number = self.n_operations
        self.n_operations += 1
        if self._before is not None:
            self._before(number, name)
        if number == self._last and not self._done:
            raise Killed
        result = getattr(self._storage, name)(*arguments, **options)
        if number == self._last:
            raise Killed
        return result

    def list_files(self, folder: str) -> list[str]:
        return self._run("list_files", folder)

    def modified_at(self, folder: str) -> dict[str, float]:
        return self._run("modified_at", folder)

    def size_bytes(self, file: str) -> int | None:
        return self._run("size_bytes", file)

    def open(self, file: str) -> pa.NativeFile:
        return self._run("open", file)

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        self._run("publish", file, data, exclusive=exclusive)

    def delete(self, file: str) -> None:
        self._run("delete", file)
