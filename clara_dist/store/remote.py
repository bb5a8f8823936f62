"""Object stores (``s3://``, ``gs://``), through one client for everything: obstore, which binds Rust's object_store.

It has what a store's commit needs and ``pyarrow.fs`` lacks, a put on condition that the object is not there; and it
retries what fails in passing: 5xx answers, resets, time-outs, and a body cut short, which it goes on reading where it
ended. Every put is one request (no multipart upload), so a retry finds either nothing or the whole object.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

import obstore
import pyarrow as pa
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import GCSStore, S3Store

from clara_dist.errors import StorageError, StoreError
from clara_dist.store.storage import refuse_credentials

if TYPE_CHECKING:
    from obstore import GetOptions

# A shard of some hundred MB goes out in one request over a slow line; a dead line is found by the missing answer.
# HTTP is for endpoints that say so; that of the service itself never does.
_CLIENT = {"timeout": timedelta(minutes=15), "read_timeout": timedelta(minutes=3), "allow_http": True}
_RETRY = {"max_retries": 10, "retry_timeout": timedelta(minutes=5)}
# What the client itself does not retry: the answer to a listing or a deletion that is cut short, and a conditional put
# that times out. (Here it may be made twice, since `publish` compares what is there with what it wanted to write.)
_NOT_RETRIED = ("response body error", "kind: Timeout")
_ATTEMPTS = 3
_TAIL_BYTES = 64 << 10
_CREDENTIALS = {
    "s3": "the credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or the machine's role), AWS_REGION and the "
    "endpoint (AWS_ENDPOINT_URL or ?endpoint_override=)",
    "gs": "the credentials (GOOGLE_APPLICATION_CREDENTIALS, or the machine's service account)",
}
_OPTIONS = {"s3": ("endpoint_override", "scheme", "region"), "gs": ("endpoint_override", "scheme")}
T = TypeVar("T")


@dataclass(frozen=True)
class RemoteUrl:
    """``SCHEME://BUCKET/PATH?OPTIONS``, taken apart. Options are those that ``pyarrow.fs`` has for such URLs.

    Attributes:
        scheme: ``s3`` or ``gs``.
        bucket: The bucket.
        path: Key of an object or of a folder in it, without slashes around it.
        options: ``endpoint_override``, ``scheme`` (of the endpoint) and ``region``, as far as given.
        query: The options as they were written, with the question mark.
    """

    scheme: str
    bucket: str
    path: str
    options: dict[str, str]
    query: str

    @classmethod
    def parse(cls, url: str) -> RemoteUrl:
        """Take a URL apart.

        Raises:
            StoreError: Another scheme, no bucket, an unknown option; or credentials in the URL, whose text the message
                does not repeat.
        """
        refuse_credentials(url)
        parts = urlsplit(url)
        shown = f"{parts.scheme}://{parts.netloc}{parts.path}"
        if parts.scheme not in _OPTIONS:
            raise StoreError(f"cannot open {shown}", got=f"{parts.scheme}://", expected="a path, s3:// or gs://")
        options = dict(parse_qsl(parts.query))
        unknown = sorted(options.keys() - set(_OPTIONS[parts.scheme]))
        if not parts.netloc or unknown or parts.fragment:
            raise StoreError(
                f"cannot understand the URL of {shown}",
                got=f"options {', '.join(unknown)}" if unknown else None,
                expected=f"{parts.scheme}://BUCKET/PATH, and of the options {', '.join(_OPTIONS[parts.scheme])}",
                hint=f"set {_CREDENTIALS[parts.scheme]} in the environment" if unknown else None,
            )
        query = f"?{parts.query}" if parts.query else ""
        return cls(parts.scheme, parts.netloc, unquote(parts.path).strip("/"), options, query)

    def __str__(self) -> str:
        return f"{self.scheme}://{self.bucket}/{self.path}{self.query}"

    @property
    def endpoint(self) -> str | None:
        """Address of the service, where it is not the usual one."""
        given = self.options.get("endpoint_override")
        if given is None or "://" in given:
            return given
        return f"{self.options.get('scheme', 'https')}://{given}"


class RemoteStorage:
    """A folder of a bucket.

    Credentials, region and endpoint come from the environment (``AWS_*``, ``GOOGLE_*``) or the machine's role; what
    the URL says of region and endpoint goes first. Reading asks for the ranges that are read, and copies them.
    """

    def __init__(self, client: Any, url: RemoteUrl) -> None:
        self._client = client
        self._url = url
        self.url = str(url)

    @classmethod
    def from_url(cls, url: str) -> RemoteStorage:
        """Open the folder that a URL names; nothing is asked of the service yet.

        Raises:
            StoreError: The URL or the environment's settings make no sense, or the URL carries credentials.
        """
        parsed = RemoteUrl.parse(url)
        config: dict[str, Any] = {}
        if parsed.endpoint is not None:
            config["endpoint" if parsed.scheme == "s3" else "base_url"] = parsed.endpoint
        if "region" in parsed.options:
            config["region"] = parsed.options["region"]
        make: Any = S3Store if parsed.scheme == "s3" else GCSStore
        try:
            store = make(
                parsed.bucket, prefix=parsed.path or None, config=config, client_options=_CLIENT, retry_config=_RETRY
            )
        except (BaseError, ValueError) as error:
            raise StoreError(
                f"cannot open {parsed}", got=_reason(error), hint=f"check {_CREDENTIALS[parsed.scheme]}"
            ) from error
        return cls(store, parsed)

    def list_files(self, folder: str) -> list[str]:
        return sorted(name for name in self.modified_at(folder) if not name.startswith("."))

    def modified_at(self, folder: str) -> dict[str, float]:
        found = self._ask("list", folder, lambda: obstore.list_with_delimiter(self._client, folder or None))
        return {entry["path"].rpartition("/")[2]: entry["last_modified"].timestamp() for entry in found["objects"]}

    def list_tree(self, folder: str = "") -> dict[str, int]:
        """All files in and below ``folder``, by their paths from here: sizes in bytes."""
        pages = self._ask("list", folder, lambda: list(obstore.list(self._client, folder or None, chunk_size=1000)))
        return {entry["path"]: entry["size"] for page in pages for entry in page}

    def is_empty(self) -> bool:
        """Whether there is nothing below this folder."""
        return self._ask("list", "", lambda: not any(map(len, obstore.list(self._client, chunk_size=1))))

    def size_bytes(self, file: str) -> int | None:
        try:
            return int(self._ask("read", file, lambda: obstore.head(self._client, file))["size"])
        except FileNotFoundError:
            return None

    def open(self, file: str) -> pa.NativeFile:
        return pa.PythonFile(self.open_raw(file), mode="r")

    def open_raw(self, file: str) -> io.RawIOBase:
        """Open ``file`` as Python does. Raises what `open` raises, while reading too."""
        try:
            # One request tells the size and has what Arrow and Parquet read first, or a small file whole.
            options: GetOptions = {"range": {"suffix": _TAIL_BYTES}}
            size_bytes, tail = self._ask("read", file, lambda: _fetch(obstore.get(self._client, file, options=options)))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"there is no object {self._named(file)}") from error
        except StoreError:
            if self.size_bytes(file) != 0:  # of nothing there is no last part
                raise
            size_bytes, tail = 0, b""
        return _RangeReader(self, file, size_bytes, tail)

    def read_range(self, file: str, start: int, length: int) -> obstore.Bytes:
        """Bytes ``start`` to ``start + length`` of ``file``, which must have them."""
        data = self._ask("read", file, lambda: obstore.get_range(self._client, file, start=start, length=length))
        if len(data) != length:
            raise StoreError(
                f"{self._named(file)} changed while it was read", got=f"{len(data)} bytes", expected=f"{length} bytes"
            )
        return data

    def publish(self, file: str, data: bytes | pa.Buffer, *, exclusive: bool) -> None:
        content = memoryview(data).cast("B")
        mode: Literal["create", "overwrite"] = "create" if exclusive else "overwrite"
        try:
            self._ask("write", file, lambda: obstore.put(self._client, file, content, mode=mode, use_multipart=False))
        except FileNotFoundError as error:
            raise self._failure("write", file, error) from error
        except AlreadyExistsError:
            # Perhaps this very call stored it: the answer was lost, and the retry found the object there.
            if not self._holds(file, content):
                raise FileExistsError(f"{self._named(file)} exists") from None

    def delete(self, file: str) -> None:
        self._ask("delete", file, lambda: obstore.delete(self._client, file))

    def _holds(self, file: str, data: memoryview) -> bool:
        try:
            with self.open(file) as source:
                return source.size() == len(data) and source.read_buffer().equals(pa.py_buffer(data))
        except FileNotFoundError:  # it was another's, who has deleted it meanwhile
            return False

    def _named(self, file: str) -> str:
        return f"{self._url.scheme}://" + "/".join(filter(None, (self._url.bucket, self._url.path, file)))

    def _ask(self, verb: str, file: str, request: Callable[[], T]) -> T:
        """Make a request, which may be made twice; an error names the object and what to check."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return request()
            except AlreadyExistsError:
                raise
            except BaseError as error:
                if attempt == _ATTEMPTS or not any(sign in str(error) for sign in _NOT_RETRIED):
                    raise self._failure(verb, file, error) from error
        raise AssertionError("the loop returns or raises")

    def _failure(self, verb: str, file: str, error: Exception) -> StorageError:
        return StorageError(
            f"cannot {verb} {self._named(file)}",
            got=_reason(error),
            hint=f"check the name of the bucket {self._url.bucket}, {_CREDENTIALS[self._url.scheme]}",
        )


def _reason(error: Exception) -> str:
    """What the client says, without the Rust structures that it appends."""
    return str(error).partition("\n\nDebug source")[0]


def _fetch(answer: obstore.GetResult) -> tuple[int, bytes]:
    return answer.meta["size"], bytes(answer.bytes())


class _RangeReader(io.RawIOBase):
    """An object as a file: every read is one request, but within the last part, which is here already."""

    def __init__(self, storage: RemoteStorage, file: str, size_bytes: int, tail: bytes) -> None:
        self._storage = storage
        self._file = file
        self._size_bytes = size_bytes
        self._tail = memoryview(tail)
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size_bytes}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        return bytes(self._next(self._size_bytes if size is None or size < 0 else size))

    def readall(self) -> bytes:
        return self.read()

    def readinto(self, buffer: Any) -> int:
        data = self._next(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _next(self, size: int) -> memoryview:
        length = max(0, min(size, self._size_bytes - self._position))
        if not length:
            return memoryview(b"")
        in_tail = self._position - (self._size_bytes - len(self._tail))
        if in_tail >= 0:
            data = self._tail[in_tail : in_tail + length]
        else:
            data = memoryview(self._storage.read_range(self._file, self._position, length))
        self._position += length
        return data
