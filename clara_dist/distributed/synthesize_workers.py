"""What runs on the workers of a synthesis job. Plain picklable classes; nothing here knows of Ray."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field

from clara_dist.config.synthesize import EndpointConfig, SynthesizeConfig
from clara_dist.data.corpus import read_unit
from clara_dist.data.documents import Document
from clara_dist.data.streams import KeptFile
from clara_dist.distributed.synthesize_unit import Entry, SynthesisWork, UnitFile, read_unit_file
from clara_dist.errors import DataError, EndpointError
from clara_dist.store import files
from clara_dist.synthesis import ChatClient, Limiter, Synthesizer, Usage

# Of one answer where the settings give none: enough to see that a worker's share of a limit has room for a request.
_ANSWER_TOKENS = 2048
_MAX_UNITS_AT_A_TIME = 64


@dataclass(frozen=True)
class ApiKey:
    """A key on its way to the workers. Ray shows neither it nor, as it would a runtime environment's, its variable."""

    value: str | None = field(repr=False)


@dataclass(frozen=True)
class UnitDone:
    """What a worker did for a unit.

    Attributes:
        n_done: Documents that got their rows.
        n_failed: Documents that failed.
        usage: Of the requests that it took.
        out_of_tokens: Documents were left because the worker's share of the tokens was spent.
    """

    n_done: int
    n_failed: int
    usage: Usage
    out_of_tokens: bool = False


@dataclass(frozen=True)
class Shares:
    """How the endpoint's limits are divided.

    No worker asks another whether it may send a request, so none waits for one that is lost: together they keep the
    limits because each keeps its share.

    Attributes:
        workers: So many as leave each a useful share.
        endpoint: With the limits of one worker.
        units_at_a_time: Units that a worker has under way, so that it always has documents for its requests.
    """

    workers: int
    endpoint: EndpointConfig
    units_at_a_time: int


def divide(config: SynthesizeConfig, n_units: int) -> Shares:
    """Divide the limits among as many workers as were asked for and can be of use."""
    endpoint = config.endpoint
    most = [config.workers, max(n_units, 1), endpoint.max_concurrency]
    if endpoint.requests_per_minute is not None:
        most.append(int(endpoint.requests_per_minute))
    if endpoint.tokens_per_minute is not None:
        # A request that alone is above a worker's share is sent nevertheless: shares must have room for some.
        most.append(max(1, int(endpoint.tokens_per_minute / (4 * (endpoint.max_tokens or _ANSWER_TOKENS)))))
    n = min(most)
    share = endpoint.model_copy(
        update={
            "max_concurrency": endpoint.max_concurrency // n,
            "requests_per_minute": endpoint.requests_per_minute and endpoint.requests_per_minute / n,
            "tokens_per_minute": endpoint.tokens_per_minute and endpoint.tokens_per_minute / n,
            "api_key_file": None,  # the driver has read it
        }
    )
    units = -(-share.max_concurrency // config.rows_per_unit) + 1
    return Shares(n, share, min(units, _MAX_UNITS_AT_A_TIME))


class UnitSynthesizer:
    """Writes the rows of one unit. Several threads may call it: their documents share one event loop and its limits.

    Args:
        config: The job.
        endpoint: With this worker's limits.
        key: The endpoint's.
        stop_file: While it is there, no document is begun.
        max_tokens: Nor is one once this worker has spent so many; None: no limit.
    """

    def __init__(
        self,
        config: SynthesizeConfig,
        endpoint: EndpointConfig,
        key: ApiKey,
        stop_file: str,
        max_tokens: float | None = None,
    ) -> None:
        self._config = config
        self._endpoint = endpoint
        self._environ = {} if key.value is None else {endpoint.api_key_env: key.value}
        self._stop_file = stop_file
        self._stopped = False
        self._max_tokens = max_tokens
        self._n_tokens = 0
        self._limiter = Limiter(endpoint.max_concurrency, endpoint.requests_per_minute, endpoint.tokens_per_minute)
        # A document has one request under way at a time: more documents would only wait, and be lost with the worker.
        self._at_a_time = asyncio.Semaphore(endpoint.max_concurrency)
        self._reading = threading.Lock()
        self._kept = KeptFile()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="synthesis", daemon=True).start()

    def __call__(self, task: SynthesisWork) -> UnitDone:
        """Do the documents of a unit that have no rows yet; each is on the disk as soon as it is finished.

        Raises:
            EndpointError: The endpoint would refuse every document.
            DataError: The unit cannot be read, or is not what was scanned.
        """
        path = files.join(self._config.work_dir, "units", task.file)
        found = read_unit_file(path) if files.size_bytes(path) is not None else UnitFile()
        if not found.head.n_left(task.n_wanted):  # by a worker that was lost before it could say so
            return UnitDone(0, 0, Usage())
        with self._reading:
            documents = self._read(task)
        todo = {p: documents[p] for p in range(task.n_wanted) if p not in found.head.done}
        return asyncio.run_coroutine_threadsafe(self._make(path, found, todo), self._loop).result()

    async def _make(self, path: str, found: UnitFile, todo: dict[int, Document]) -> UnitDone:
        earlier, tried = found.usage, UnitFile()
        writing = asyncio.Lock()

        async def save() -> None:
            async with writing:
                found.usage = earlier + client.usage
                await asyncio.to_thread(files.write, path, found.to_bytes())

        async def make(position: int, document: Document) -> None:
            async with self._at_a_time:
                if self._out_of_tokens() or await self._must_stop():
                    return
                try:
                    made = await synthesizer.synthesize(document.doc_id, document.text)
                except EndpointError:
                    self._stopped = True
                    raise
                self._n_tokens += made.usage.total_tokens
            found.entries[position] = tried.entries[position] = Entry.of(made)
            await save()

        # One client for each unit: its usage is the unit's, that of documents which an error ended included.
        async with ChatClient(self._endpoint, limiter=self._limiter, environ=self._environ) as client:
            synthesizer = Synthesizer(self._config.synthesis, client)
            ended = await asyncio.gather(*(make(p, document) for p, document in todo.items()), return_exceptions=True)
            if found.usage != earlier + client.usage:
                await save()
            for error in ended:
                if error is not None:
                    raise error
            n_done, n_failed = len(tried.head.done), len(tried.head.failed)
            left_out = n_done + n_failed < len(todo) and self._out_of_tokens()
            return UnitDone(n_done, n_failed, client.usage, out_of_tokens=left_out)

    def _out_of_tokens(self) -> bool:
        return self._max_tokens is not None and self._n_tokens >= self._max_tokens

    async def _must_stop(self) -> bool:
        self._stopped = self._stopped or await asyncio.to_thread(files.size_bytes, self._stop_file) is not None
        return self._stopped

    def _read(self, task: SynthesisWork) -> list[Document]:
        items = read_unit(task.work.unit, task.work.duplicates, kept=self._kept)
        documents = [item for item in items if isinstance(item, Document)]
        if len(documents) != task.n_documents:
            raise DataError(
                f"{task.work.unit.path} gives other documents than when it was scanned",
                got=f"{len(documents)} documents from row {task.work.unit.first_line} on",
                expected=task.n_documents,
                hint="run the command again on a corpus that stays as it is",
            )
        return documents
