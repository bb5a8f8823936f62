"""Serving measured: the engine alone, the engine behind HTTP, and the same engine reading the documents' text."""

from __future__ import annotations

import asyncio
import json
import random
import socket
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import torch

from clara_dist.bench.corpus import make_passages
from clara_dist.bench.machine import describe_machine
from clara_dist.bench.model import write_random_model
from clara_dist.config.model import SYSTEM_PROMPT
from clara_dist.config.serve import LimitsConfig, ServeConfig
from clara_dist.errors import ClaraError
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.engine import Piece, Sampling
from clara_dist.inference.transformers_engine import TransformersEngine
from clara_dist.model.clara import ClaraModel
from clara_dist.retrieval.search import ExactSearcher
from clara_dist.store.reader import MemoryStore
from clara_dist.store.schema import StoreSchema
from clara_dist.store.writer import commit, write_shard

_PROMPT_WEIGHT = 100
_N_DOCUMENTS = 128
_QUESTION_WORDS = 12
_PROMPT_TOKENS = 2000  # of the 2,048 that the base reads
CONCURRENCY = (1, 8, 32)
# Pieces of one answer, as they come.
Stream = Callable[[str], AsyncIterator[Piece]]


@dataclass(frozen=True)
class ServeBench:
    """What to measure; see ``clara-dist bench serve --help``.

    Attributes:
        n_requests: Of each measurement at most 32 at a time; of one at a time a quarter of them.
        max_tokens: Of each answer; a random model hardly ever ends one by itself.
        threads: torch threads of the engine.
    """

    shape: str = "small"
    n_requests: int = 64
    max_tokens: int = 32
    top_k: int = 5
    threads: int = 1


@dataclass(frozen=True)
class Timed:
    """One answer: seconds from the request to its first and last token, its tokens, its text."""

    first_s: float
    total_s: float
    n_tokens: int
    text: str


class ServedWorld:
    """A random model, a store of documents that fill it (256 tokens each), and questions."""

    def __init__(self, settings: ServeBench, folder: Path) -> None:
        passages = make_passages(4 * _N_DOCUMENTS)
        texts = [*passages, *[f"{SYSTEM_PROMPT} Background: Question:"] * _PROMPT_WEIGHT]
        self.model = write_random_model(folder, settings.shape, texts, dtype="float32", device="cpu")
        _allow_long_prompts(self.model)
        self.store = folder / "store"
        clara = ClaraModel.from_pretrained(str(self.model))
        words = " ".join(passages).split()
        documents = [_full(clara, words[i * 300 : (i + 1) * 300]) for i in range(_N_DOCUMENTS)]
        compressor = DocumentCompressor(clara)
        made = compressor.compress([("", text) for text in documents])
        schema = StoreSchema(made.memory_SMD.shape[1], made.memory_SMD.shape[2])
        table = schema.to_table(
            doc_ids=[f"d{i}" for i in range(len(documents))],
            titles=[""] * len(documents),
            texts=documents,
            metadata=[{}] * len(documents),
            memory_SMD=made.memory_SMD,
            n_tokens=made.n_tokens_S,
            truncated=made.truncated_S,
        )
        commit(self.store, schema, compressor.fingerprint, [write_shard(self.store, table, "a")])
        draw = random.Random(1)
        self.questions = [" ".join(draw.choices(words, k=_QUESTION_WORDS)) for _ in range(settings.n_requests)]


def run_bench(settings: ServeBench, output: Path) -> str:
    """Measure, write the figures to ``output``, and return them as text.

    Raises:
        ClaraError: An answer at some concurrency is not that of one at a time.
    """
    machine = describe_machine("cpu")
    torch.set_num_threads(settings.threads)
    with tempfile.TemporaryDirectory(prefix="clara-bench-") as folder:
        world = ServedWorld(settings, Path(folder))
        results: dict[str, Any] = {"engine": _engine_alone(settings, world)}
        results["http"] = _over_http(settings, world)
    one, many = (results["engine"][f"at {n}"] for n in (CONCURRENCY[0], CONCURRENCY[-1]))
    served, text = results["http"], results["engine"]["text"]
    results["ratios"] = {
        "tokens/s of 32 at a time to 1 at a time": many["tokens_per_s"] / one["tokens_per_s"],
        "first token of text to memories": text["first_token_s"]["p50"] / one["first_token_s"]["p50"],
        "first token at half load to idle": served["half load"]["first_token_s"]["p50"]
        / served["at 1"]["first_token_s"]["p50"],
        "tokens/s over HTTP to the engine alone, 32 at a time": served["at 32"]["tokens_per_s"] / many["tokens_per_s"],
    }
    results["http_adds_s"] = served["at 1"]["first_token_s"]["p50"] - one["first_token_s"]["p50"]
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps({"machine": machine, "settings": asdict(settings)} | results, indent=2) + "\n")
    return _summary(results)


def _engine_alone(settings: ServeBench, world: ServedWorld) -> dict[str, Any]:
    clara, store = ClaraModel.from_pretrained(str(world.model)), MemoryStore.open(world.store)
    clara.fuse_for_serving()
    engine = TransformersEngine(clara, max_rows=CONCURRENCY[-1], threads=settings.threads)
    searcher = ExactSearcher(store)
    sampling = Sampling(settings.max_tokens)

    def from_memories(question: str) -> AsyncIterator[Piece]:
        return _answer(question, as_text=False)

    def from_text(question: str) -> AsyncIterator[Piece]:
        return _answer(question, as_text=True)

    async def _answer(question: str, *, as_text: bool) -> AsyncIterator[Piece]:
        query_BX = await engine.reason([question])
        rows_K = (await asyncio.to_thread(searcher.search, query_BX, settings.top_k)).rows_BK[0].numpy()
        if as_text:
            prompt, memory = clara.tokenizer.text_prompt(question, [d.text for d in store.documents(rows_K)]), None
        else:
            prompt, memory = clara.tokenizer.prompt(question, settings.top_k), store.take_memory(rows_K)
        async for piece in engine.answer(prompt, memory, sampling):
            yield piece

    async def measure() -> dict[str, Any]:
        await _closed_loop(from_memories, world.questions[:4], 2)  # warms up
        found = await _at_each(from_memories, settings, world.questions)
        texts = await _closed_loop(from_text, world.questions[: settings.n_requests // 4], 1)
        return found | {"text": _figures(*texts)}

    try:
        return asyncio.run(measure())
    finally:
        engine.close()


def _over_http(settings: ServeBench, world: ServedWorld) -> dict[str, Any]:
    with _server(settings, world) as url:
        return asyncio.run(_through(url, settings, world.questions))


@contextmanager
def _server(settings: ServeBench, world: ServedWorld) -> Any:
    from clara_dist.distributed.serve_app import serving

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = ServeConfig(
        model=str(world.model),
        store=str(world.store),
        port=port,
        top_k=settings.top_k,
        max_tokens=settings.max_tokens,
        batch_size=CONCURRENCY[-1],
        threads=settings.threads,
        limits=LimitsConfig(max_queued_requests=1000),
    )
    with serving(config, address="local") as url:
        yield url


async def _through(url: str, settings: ServeBench, questions: Sequence[str]) -> dict[str, Any]:
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits, trust_env=False) as http:

        async def ask(question: str) -> AsyncIterator[Piece]:
            body = {"model": "clara", "messages": [{"role": "user", "content": question}], "stream": True}
            body |= {"stream_options": {"include_usage": True}}
            async with http.stream("POST", "/v1/chat/completions", json=body) as response:
                response.raise_for_status()
                async for line in response.aiter_lines():
                    data = line.removeprefix("data: ")
                    if not data or data == "[DONE]":
                        continue
                    chunk = json.loads(data)
                    if chunk["choices"] and chunk["choices"][0]["delta"].get("content"):
                        yield Piece(chunk["choices"][0]["delta"]["content"], 0)
                    elif not chunk["choices"]:
                        yield Piece("", chunk["usage"]["completion_tokens"])

        await _closed_loop(ask, questions[:4], 2)  # warms up
        found = await _at_each(ask, settings, questions)
        per_s = found[f"at {CONCURRENCY[-1]}"]["requests_per_s"] / 2
        found["half load"] = _figures(*await _open_loop(ask, questions, per_s))
        return found


async def _at_each(stream: Stream, settings: ServeBench, questions: Sequence[str]) -> dict[str, Any]:
    """Figures at each concurrency; every answer must be the one that it was alone."""
    found: dict[str, Any] = {}
    alone: dict[str, str] = {}
    for n in CONCURRENCY:
        asked = questions[: settings.n_requests // 4] if n == 1 else questions
        answers, seconds = await _closed_loop(stream, asked, n)
        found[f"at {n}"] = _figures(answers, seconds)
        alone = alone or {question: answer.text for question, answer in zip(asked, answers, strict=True)}
        for question, answer in zip(asked, answers, strict=True):
            if alone.get(question, answer.text) != answer.text:
                raise ClaraError(
                    f"an answer depends on what else is asked ({n} at a time)",
                    got=answer.text,
                    expected=alone[question],
                )
    return found


async def _closed_loop(stream: Stream, questions: Sequence[str], n_clients: int) -> tuple[list[Timed], float]:
    """Clients that ask one question after the other; answers in the order of the questions, and the seconds of all."""
    places = asyncio.Semaphore(n_clients)

    async def one(question: str) -> Timed:
        async with places:
            return await _timed(stream, question)

    started = time.perf_counter()
    answers = await asyncio.gather(*map(one, questions))
    return answers, time.perf_counter() - started


async def _open_loop(stream: Stream, questions: Sequence[str], per_s: float) -> tuple[list[Timed], float]:
    """Questions that come at random moments (Poisson), whether the ones before are answered or not."""
    draw, at = random.Random(2), 0.0

    async def one(question: str, at: float) -> Timed:
        await asyncio.sleep(at)
        return await _timed(stream, question)

    tasks = []
    started = time.perf_counter()
    for question in questions:
        at += draw.expovariate(per_s)
        tasks.append(asyncio.create_task(one(question, at)))
    answers = await asyncio.gather(*tasks)
    return answers, time.perf_counter() - started


async def _timed(stream: Stream, question: str) -> Timed:
    started, first_s, n_tokens, texts = time.perf_counter(), 0.0, 0, []
    async with aclosing(stream(question)) as pieces:  # type: ignore[type-var]
        async for piece in pieces:
            first_s = first_s or time.perf_counter() - started
            n_tokens += piece.n_tokens
            texts.append(piece.text)
    return Timed(first_s, time.perf_counter() - started, n_tokens, "".join(texts))


def _figures(answers: Sequence[Timed], seconds: float) -> dict[str, Any]:
    n_tokens = sum(answer.n_tokens for answer in answers)
    between = [(a.total_s - a.first_s) / max(1, a.n_tokens - 1) for a in answers]
    return {
        "n_requests": len(answers),
        "requests_per_s": len(answers) / seconds,
        "tokens_per_s": n_tokens / seconds,
        "first_token_s": _spread([answer.first_s for answer in answers]),
        "between_tokens_s": _spread(between),
        "total_s": _spread([answer.total_s for answer in answers]),
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values)
    return {"p50": statistics.median(ordered), "p99": ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]}


def _allow_long_prompts(model: Path) -> None:
    """Text RAG's prompts are longer than those that the published settings allow."""
    path = model / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | {"max_prompt_tokens": _PROMPT_TOKENS}), encoding="utf-8")


def _full(clara: ClaraModel, words: Sequence[str]) -> str:
    """As many of the words as the compressor reads."""
    most = clara.config.doc_max_tokens
    low, high = 1, len(words)
    while low < high:
        middle = (low + high + 1) // 2
        fits = clara.tokenizer.encode_text(" ".join(words[:middle])).n_tokens < most
        low, high = (middle, high) if fits else (low, middle - 1)
    return " ".join(words[:low])


def _summary(results: dict[str, Any]) -> str:
    rows = [
        f"{'':<22}{'tokens/s':>10}{'first token':>24}{'between tokens':>24}",
        f"{'':<32}{'p50 / p99, ms':>24}{'':>24}",
    ]
    for part in ("engine", "http"):
        for name, found in results[part].items():
            first, between = (found[key] for key in ("first_token_s", "between_tokens_s"))
            first_ms, between_ms = (f"{1e3 * f['p50']:.1f} / {1e3 * f['p99']:.1f}" for f in (first, between))
            rows.append(f"{part + ', ' + name:<22}{found['tokens_per_s']:>10.1f}{first_ms:>30}{between_ms:>24}")
    rows += [f"{name}: {ratio:.2f}" for name, ratio in results["ratios"].items()]
    rows.append(f"HTTP and Serve add {1e3 * results['http_adds_s']:.1f} ms to the first token (p50, one at a time)")
    return "\n".join(rows)
