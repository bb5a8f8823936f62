from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config.synthesize import EndpointConfig, SynthesisConfig
from clara_dist.data.examples import read_examples
from clara_dist.errors import EndpointError
from clara_dist.synthesis import ChatClient, Synthesized, Synthesizer, Usage
from fake_time import FakeTime
from openai_stub import (
    HANG,
    RESET,
    SERVER_ERROR,
    Behaviour,
    Call,
    Reply,
    Stub,
    rate_limited,
    refusal,
    scripted,
    serving,
    write,
    write_well,
)

FACTS = ["Ada was born in 1815.", "She wrote notes on an engine.", "Her mother taught her.", "The engine was large."]
TEXT = " ".join(FACTS)


def synthesize(behaviour: Behaviour, *, timeout_s: float = 60.0, **settings: Any) -> tuple[Synthesized, Stub]:
    async def main(url: str) -> Synthesized:
        endpoint = EndpointConfig(base_url=url, model="tiny", timeout_s=timeout_s, api_key_env="STUB_KEY")
        async with ChatClient(endpoint, timing=FakeTime().timing) as client:
            done = await Synthesizer(SynthesisConfig(**settings), client).synthesize("ada", TEXT)
            assert client.usage == done.usage
            return done

    with serving(behaviour) as stub:
        done = asyncio.run(main(stub.url))
    assert done.doc_id == "ada"
    assert done.usage.requests == len(stub.calls)
    assert done.usage.prompt_tokens == stub.prompt_tokens
    assert done.usage.completion_tokens == stub.completion_tokens
    assert done.usage.answered == stub.completions
    return done, stub


def replaced(at: Sequence[int], reply: Reply) -> Behaviour:
    """Write well, but for the requests of these numbers."""
    return lambda call: reply if call.index in at else write_well(call)


def test_rows_are_what_the_compression_stage_reads(tmp_path: Path) -> None:
    done, stub = synthesize(write_well, n_simple=4, n_complex=2, n_paraphrases=2)
    assert (done.missing, done.rounds, done.failure) == ((), 0, None)
    assert stub.kinds() == {"simple": 1, "complex": 1, "paraphrase": 1, "check": 3}
    assert [row["data_type"] for row in done.rows] == ["qa", "qa", "paraphrase"]
    assert [len(row["question"]) for row in done.rows] == [4, 2, 0]
    assert all(row["docs"] == [TEXT] for row in done.rows)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in done.rows))
    examples = read_examples(path, "compression")
    assert [example.task for example in examples] == ["qa_generation", "qa_generation", "paraphrase", "paraphrase"]
    assert {example.documents for example in examples} == {(TEXT,)}
    assert examples[1].answer == (
        "Question: Which complex fact is Ada was born in 1815?\nAnswer: Ada was born in 1815.\n"
        "Question: Which complex fact is She wrote notes on an engine?\nAnswer: She wrote notes on an engine."
    )
    assert examples[3].answer == f"In other words (1): {TEXT}"


@pytest.mark.parametrize(
    ("numbers", "kinds"),
    [
        ({"n_simple": 4, "n_complex": 0, "n_paraphrases": 0}, {"simple": 1, "check": 1}),
        ({"n_simple": 0, "n_complex": 4, "n_paraphrases": 0}, {"complex": 1, "check": 1}),
        ({"n_simple": 0, "n_complex": 0, "n_paraphrases": 1}, {"paraphrase": 1, "check": 1}),
    ],
)
def test_only_what_is_wanted_is_asked_for(numbers: dict[str, int], kinds: dict[str, int]) -> None:
    done, stub = synthesize(write_well, **numbers)
    assert stub.kinds() == kinds
    assert len(done.rows) == 1
    assert done.missing == ()


def test_what_is_left_out_is_written_in_another_round() -> None:
    done, stub = synthesize(functools.partial(write, forget=2), n_complex=1)
    assert (done.missing, done.rounds) == ((), 1)
    assert [call.kind for call in stub.calls] == [
        "simple", "complex", "check", "simple", "check", "paraphrase", "check", "paraphrase", "check",
    ]  # fmt: skip
    anew = stub.calls[3].prompt
    assert anew.endswith(f"{FACTS[2]}\n- {FACTS[3]}")
    assert "- Which simple fact is Ada was born in 1815?\n" in anew
    assert "- Which complex fact is Ada was born in 1815?\n" in anew
    # The second check sees the old pairs and the new ones.
    assert all(fact in stub.calls[4].prompt.partition("<material>")[2] for fact in FACTS)
    assert done.rows[0]["answers"] == FACTS
    assert done.rows[2]["answers"] == [f"In other words (0): {TEXT}"]


def test_without_simple_pairs_complex_ones_are_added() -> None:
    done, stub = synthesize(functools.partial(write, forget=1), n_simple=0, n_complex=4, n_paraphrases=0)
    assert stub.kinds() == {"complex": 2, "check": 2}
    assert done.rows[0]["answers"] == FACTS


def never_content(call: Call) -> Reply:
    """A checker that finds one new fact missing each time."""
    if call.kind == "check":
        return Reply(json.dumps({"missing": [f"Fact {call.index} is told."]}))
    return write_well(call)


@pytest.mark.parametrize("max_rounds", [0, 1, 3])
def test_rounds_are_bounded_and_what_stays_missing_is_told(max_rounds: int) -> None:
    done, stub = synthesize(never_content, max_rounds=max_rounds, n_complex=0, n_paraphrases=0)
    assert done.rounds == max_rounds
    assert stub.kinds() == {"simple": 1 + max_rounds, "check": 1 + max_rounds}
    assert done.missing == (f"Fact {stub.calls[-1].index} is told.",)
    assert len(done.rows) == 1
    assert len(done.rows[0]["question"]) == 4 + max_rounds


def content_with_one(call: Call) -> Reply:
    """A checker that is content with the first paraphrase, and with nothing else."""
    material = call.prompt.partition("<material>")[2]
    if call.kind == "check" and "In other words (0)" not in material:
        return Reply(json.dumps({"missing": [f"Fact {call.index} is told.", "The engine is told."]}))
    return write_well(call)


def test_what_leaves_facts_out_is_dropped_where_it_is_not_wanted() -> None:
    kept, _ = synthesize(content_with_one, max_rounds=0, n_complex=0, n_paraphrases=2)
    done, _ = synthesize(content_with_one, max_rounds=0, n_complex=0, n_paraphrases=2, keep_uncovered=False)
    assert [len(row["answers"]) for row in kept.rows] == [4, 2]
    assert [row["answers"] for row in done.rows] == [[f"In other words (0): {TEXT}"]]
    # Both say what was left out; what pairs and a paraphrase both lack is told once.
    assert done.missing == kept.missing == ("Fact 1 is told.", "The engine is told.", "Fact 4 is told.")
    assert done.failure is None


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (Reply("Sure! Here are the pairs."), "not the JSON that was asked for"),
        (Reply('{"pairs": []}'), "it had 0 pairs, expected 1 to 5"),
        (Reply('{"pairs": [{"question": "Who?", "answer": "Ada'), "not the JSON that was asked for"),
        (Reply('{"pairs": [{"question": "Who?", "answer": "Ada"}]}', finish_reason="length"), "cut off"),
        (Reply(""), "it was empty"),
        (Reply(json.dumps({"pairs": [{"question": "Who?", "answer": "Ada"}] * 2})), "repeated a question"),
    ],
)
def test_a_malformed_answer_is_asked_for_again_with_what_was_wrong(reply: Reply, told: str) -> None:
    done, stub = synthesize(replaced([0], reply), n_complex=0, n_paraphrases=0)
    assert stub.calls[1].prompt.startswith(stub.calls[0].prompt)
    assert told in stub.calls[1].prompt.removeprefix(stub.calls[0].prompt)
    assert [call.asked_again for call in stub.calls] == [False, True, False]
    assert (done.usage.malformed, done.usage.retries, done.failure) == (1, 0, None)
    assert done.rows[0]["answers"] == FACTS


def test_malformed_checks_and_paraphrases_are_asked_for_again_too() -> None:
    copied = Reply(json.dumps({"paraphrases": [TEXT]}))
    bad = {1: Reply("?"), 3: copied}
    done, stub = synthesize(lambda call: bad.get(call.index) or write_well(call), n_complex=0)
    assert [call.kind for call in stub.calls] == ["simple", "check", "check", "paraphrase", "paraphrase", "check"]
    assert done.usage.malformed == 2
    assert len(done.rows) == 2


def test_a_fenced_answer_is_not_malformed() -> None:
    def fenced(call: Call) -> Reply:
        return Reply(f"```json\n{write_well(call).text}\n```")

    done, _ = synthesize(fenced)
    assert done.usage.malformed == 0
    assert len(done.rows) == 3


def test_a_document_fails_after_so_many_attempts_and_its_usage_is_kept() -> None:
    done, stub = synthesize(lambda call: Reply("no idea") if call.kind == "complex" else write_well(call))
    assert done.rows == ()
    assert done.failure is not None
    assert "no usable answer in 3 attempts" in done.failure
    assert (done.usage.requests, done.usage.malformed) == (4, 3)
    assert stub.kinds() == {"simple": 1, "complex": 3}
    assert done.usage.completion_tokens > 3 * 2


def test_a_refused_document_fails_and_its_usage_is_kept() -> None:
    done, stub = synthesize(replaced([1], refusal(400, "context too long")))
    assert done.rows == ()
    assert "context too long" in str(done.failure)
    assert done.usage == Usage(2, stub.prompt_tokens, stub.completion_tokens, refused=1)


def test_every_failure_at_once_is_counted_exactly() -> None:
    replies = [
        rate_limited(), rate_limited("3"), SERVER_ERROR, RESET, HANG, Reply("not JSON"), Reply(body="<html>"),
        Reply('{"pairs": [{"question": "Who?", "answer": "Ada"}]}', with_usage=False),
    ]  # fmt: skip
    done, stub = synthesize(scripted(*replies), timeout_s=3.0, n_complex=0)
    assert done.failure is None
    # The eighth request was answered with one pair of no sentence; all of them follow in the next round.
    assert done.rounds == 1
    assert done.usage == Usage(
        requests=len(stub.calls),
        prompt_tokens=stub.prompt_tokens,
        completion_tokens=stub.completion_tokens,
        retries=6,
        rate_limited=2,
        timeouts=1,
        connection_errors=1,
        server_errors=2,
        malformed=1,
        without_usage=1,
    )


def test_an_endpoint_that_refuses_everything_ends_the_job() -> None:
    with pytest.raises(EndpointError, match="cannot be worked with"):
        synthesize(replaced([2], refusal(401)))


def test_prompts_of_ones_own_are_sent() -> None:
    own = {
        "simple_prompt": "S simple question {n}: <document>\n{document}\n</document> at most 7",
        "check_prompt": 'C {"missing"} <document>\n{document}\n</document>\n<material>\n{material}\n</material>',
    }
    done, stub = synthesize(write_well, n_simple=7, n_complex=0, n_paraphrases=0, **own)
    assert stub.calls[0].prompt == f"S simple question 7: <document>\n{TEXT}\n</document> at most 7"
    assert stub.calls[1].prompt.startswith('C {"missing"} <document>\nAda')
    assert done.rows[0]["answers"] == FACTS


def test_documents_are_written_side_by_side_and_each_has_its_own_usage() -> None:
    async def main(url: str) -> tuple[list[Synthesized], Usage]:
        async with ChatClient(EndpointConfig(base_url=url, model="m", max_concurrency=4)) as client:
            writer = Synthesizer(SynthesisConfig(), client)
            texts = [f"Number {i} is told. It is {i * i}." for i in range(8)]
            done = await asyncio.gather(*(writer.synthesize(str(i), text) for i, text in enumerate(texts)))
            return done, client.usage

    with serving() as stub:
        done, usage = asyncio.run(main(stub.url))
    assert [each.rows[0]["answers"][0] for each in done] == [f"Number {i} is told." for i in range(8)]
    assert sum((each.usage for each in done), Usage()) == usage
    assert (usage.prompt_tokens, usage.completion_tokens) == (stub.prompt_tokens, stub.completion_tokens)
    assert [each.usage.requests for each in done] == [5] * 8
