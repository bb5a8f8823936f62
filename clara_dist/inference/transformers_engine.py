"""The engine on transformers: one thread owns the model, and everybody else talks to it through queues."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import torch

from clara_dist.errors import ClaraError, ModelError
from clara_dist.inference.engine import EngineStats, Piece, Sampling
from clara_dist.inference.growing_text import GrowingText
from clara_dist.inference.reasoner import Reasoner
from clara_dist.inference.scheduler import Scheduler, require_context
from clara_dist.model.clara import ClaraModel

logger = logging.getLogger(__name__)

Event = Piece | Exception
ResultT = TypeVar("ResultT")


@dataclass(eq=False)
class _Question:
    text: str
    loop: asyncio.AbstractEventLoop
    vector: asyncio.Future[np.ndarray]


@dataclass(eq=False)
class _Request:
    """An answer under way, and the way to who waits for it."""

    prompt_ids: Sequence[int]
    memory_KMD: np.ndarray | None
    sampling: Sampling
    text: GrowingText
    loop: asyncio.AbstractEventLoop
    events: asyncio.Queue[Event] = field(default_factory=asyncio.Queue)
    n_new: int = 0
    ticket: int | None = None


class TransformersEngine:
    """`AnswerEngine` over a `Scheduler`.

    Between two decoding steps the thread reasons all questions that have come in, in one forward pass, forgets who has
    left and admits who has arrived: a question waits for one step at most, however many answers are being decoded.

    Args:
        clara: A model with reasoner and generator. The engine's thread alone may use it from now on.
        max_rows: As of `Scheduler`.
        max_batch_tokens: As of `Scheduler`.
        threads: torch threads of the engine's thread; None leaves torch's default.
    """

    def __init__(
        self, clara: ClaraModel, *, max_rows: int = 64, max_batch_tokens: int = 65_536, threads: int | None = None
    ) -> None:
        self._clara = clara
        self._reasoner = Reasoner(clara)
        self._new_scheduler = lambda: Scheduler(clara, max_rows, max_batch_tokens)
        self._scheduler = self._new_scheduler()
        self._running: dict[int, _Request] = {}
        # What the thread is to see at its next turn; all under the lock.
        self._turn = threading.Condition()
        self._questions: list[_Question] = []
        self._tasks: list[Callable[[], None]] = []
        self._arrived: list[_Request] = []
        self._left: list[_Request] = []
        self._closed = False
        self._prompt_tokens = self._completion_tokens = 0
        self._thread = threading.Thread(target=self._work, args=(threads,), name="engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        with self._turn:
            waiting = self._scheduler.n_waiting + len(self._arrived)
            return EngineStats(self._scheduler.n_running, waiting, self._prompt_tokens, self._completion_tokens)

    async def reason(self, questions: Sequence[str]) -> np.ndarray:
        """As `AnswerEngine.reason`.

        Raises:
            TokenizationError: A question is longer than the reasoner reads.
            ModelError: The engine is closed.
        """
        # Before it meets others: one that is too long must not fail their forward pass.
        self._clara.tokenizer.encode_questions(questions)
        loop = asyncio.get_running_loop()
        mine = [_Question(text, loop, loop.create_future()) for text in questions]
        self._tell(lambda: self._questions.extend(mine))
        return np.stack(await asyncio.gather(*(question.vector for question in mine)))

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something else on the model, between two steps.

        Raises:
            ModelError: The engine is closed.
        """
        loop = asyncio.get_running_loop()
        result: asyncio.Future[ResultT] = loop.create_future()

        def run() -> None:
            try:
                _call(loop, _set_result, result, work())
            except Exception as error:
                _call(loop, _set_exception, result, error)

        self._tell(lambda: self._tasks.append(run))
        return await result

    async def answer(
        self, prompt_ids: Sequence[int], memory_KMD: np.ndarray | None, sampling: Sampling
    ) -> AsyncGenerator[Piece, None]:
        """As `AnswerEngine.answer`.

        Raises:
            TokenizationError: Prompt and answer exceed the base model's context.
            ModelError: The engine is closed, or failed.
        """
        require_context(self._clara, len(prompt_ids), sampling.max_tokens)
        text = GrowingText(self._clara.tokenizer.decode, sampling.stop)
        request = _Request(prompt_ids, memory_KMD, sampling, text, asyncio.get_running_loop())
        self._tell(lambda: self._arrived.append(request))
        ended = False
        try:
            while not ended:
                event = await request.events.get()
                if isinstance(event, Exception):
                    raise event
                ended = event.finish_reason is not None
                yield event
        finally:
            if not ended:  # the caller has left
                with self._turn:
                    self._left.append(request)
                    self._turn.notify()

    def close(self) -> None:
        """End all answers, with an error for who waits, and the thread."""
        with self._turn:
            self._closed = True
            self._turn.notify()
        self._thread.join()

    @property
    def is_alive(self) -> bool:
        """Whether the thread works."""
        return self._thread.is_alive()

    def _tell(self, change: Callable[[], None]) -> None:
        with self._turn:
            if self._closed:
                raise ModelError("the engine is closed")
            change()
            self._turn.notify()

    # What follows runs in the engine's thread.

    def _work(self, threads: int | None) -> None:
        if threads is not None:
            torch.set_num_threads(threads)
        while self._take_turn():
            try:
                self._decode()
            except Exception as error:
                # Out of memory, say: what ran is lost, what comes next may fit.
                logger.exception("a decoding step failed")
                failure = error if isinstance(error, ClaraError) else ModelError("the engine failed", got=error)
                self._fail_all(failure)
        self._fail_all(ModelError("the engine is closed"))

    def _take_turn(self) -> bool:
        """Wait for something to do, and do all but decode; False when the engine is closed."""
        with self._turn:
            while self._scheduler.is_idle and not (
                self._closed or self._questions or self._tasks or self._arrived or self._left
            ):
                self._turn.wait()
            tasks, self._tasks = self._tasks, []
            questions, self._questions = self._questions, []
            left, self._left = self._left, []
            # Whoever left before the start was never told to the scheduler.
            arrived = [request for request in self._arrived if request not in left]
            self._arrived = []
            for request in left:
                if request.ticket is not None and self._running.pop(request.ticket, None) is not None:
                    self._scheduler.cancel(request.ticket)
            for request in arrived:
                memory = None if request.memory_KMD is None else torch.tensor(request.memory_KMD)
                request.ticket = self._scheduler.add(request.prompt_ids, memory, request.sampling)
                request.memory_KMD = None
                self._running[request.ticket] = request
                self._prompt_tokens += len(request.prompt_ids)
            closed = self._closed
        for task in tasks:
            task()
        if questions:
            self._reason(questions)
        return not closed

    def _reason(self, questions: Sequence[_Question]) -> None:
        try:
            query_BX = self._reasoner.query([question.text for question in questions])
        except Exception as error:
            logger.exception("reasoning failed")
            for question in questions:
                _call(question.loop, _set_exception, question.vector, ModelError("the engine failed", got=error))
            return
        for question, query_X in zip(questions, query_BX, strict=True):
            _call(question.loop, _set_result, question.vector, query_X)

    def _decode(self) -> None:
        for new in self._scheduler.step():
            self._completion_tokens += 1
            request = self._running[new.ticket]
            request.n_new += 1
            text = request.text.add(new.token_id) if new.finish_reason != "stop" else ""
            reason = new.finish_reason
            if request.text.stopped and reason is None:
                reason = "stop"
                self._scheduler.cancel(new.ticket)
            elif reason is not None:
                text += request.text.end()
                reason = "stop" if request.text.stopped else reason
            if reason is not None:
                del self._running[new.ticket]
            if text or reason is not None:
                piece = Piece(text, request.n_new, reason)
                request.n_new = 0
                _call(request.loop, request.events.put_nowait, piece)

    def _fail_all(self, error: Exception) -> None:
        with self._turn:
            lost = [*self._running.values(), *self._arrived]
            questions, self._questions = self._questions, []
            self._arrived, self._running = [], {}
            self._scheduler = self._new_scheduler()
        for request in lost:
            _call(request.loop, request.events.put_nowait, error)
        for question in questions:
            _call(question.loop, _set_exception, question.vector, error)


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *args: object) -> None:
    """Call a function in somebody's event loop; who has closed it waits for nothing any more."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *args)


def _set_result(future: asyncio.Future[Any], result: Any) -> None:
    if not future.done():  # cancelled
        future.set_result(result)


def _set_exception(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
