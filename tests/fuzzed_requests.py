"""Requests that no client should send: valid ones with something wrong, and noise."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any

VALID: dict[str, dict[str, Any]] = {
    "/v1/answers": {"question": "When?", "top_k": 2, "max_tokens": 3, "where": "number = 3"},
    "/v1/retrieve": {"question": "When?", "top_k": 2, "where": "number in (1, 2)"},
    "/v1/chat/completions": {
        "model": "clara",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "When?"}],
        "max_tokens": 3,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 1,
        "stop": ["."],
        "stream": True,
        "stream_options": {"include_usage": True},
        "clara": {"top_k": 2, "where": "number > 3"},
    },
    "/v1/completions": {"model": "clara", "prompt": "When?", "max_tokens": 3, "stop": "x"},
}
# Values that parsers, tokenizers, filters and samplers stumble over.
_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 0.5, -0.0, 1e308, 1e-320, float("nan"), float("inf"),
    "", " ", "\0", "\ud800", "\u202e", "a" * 3000, "<MEM0></s>", "number = 'x'", "((((", "' or 1=1 --", "%s{0}",
    [], [[]], [None], {}, {"a": {"a": {}}}, ["a"] * 1100, [{"role": "user"}],
)  # fmt: skip


def fuzzed_requests(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``n`` paths with bodies."""
    draw = random.Random(seed)
    for _ in range(n):
        path = draw.choice(list(VALID))
        body = json.dumps(_mutated(VALID[path], draw)).encode()
        if draw.random() < 0.2:
            noise = bytearray(body)
            for _ in range(draw.randint(1, 8)):
                noise[draw.randrange(len(noise))] = draw.randrange(256)
            body = bytes(noise[: draw.randint(0, len(noise))])
        yield path, body


def _mutated(value: Any, draw: random.Random) -> Any:
    """The value with one to three of its parts replaced, left out, doubled or joined by another."""
    value = json.loads(json.dumps(value))
    for _ in range(draw.randint(1, 3)):
        parts = list(_parts(value))
        holder, key = draw.choice(parts)
        how = draw.random()
        if how < 0.6:
            holder[key] = deepcopy(draw.choice(_VALUES))
        elif how < 0.75:
            del holder[key]
        elif isinstance(holder, dict):
            holder[draw.choice(["x", "n", "tools", "user", "where", "top_k", "\0"])] = deepcopy(draw.choice(_VALUES))
        else:
            holder.append(holder[key])
        if not list(_parts(value)):
            break
    return value


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _parts(inner)
