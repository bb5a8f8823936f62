"""The synthesis job on the serial mapper, against a real endpoint on loopback."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.data.corpus import plan_units
from clara_dist.data.examples import read_examples
from clara_dist.distributed import synthesize_job
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.synthesize_report import SynthesizeReport
from clara_dist.distributed.synthesize_workers import ApiKey
from clara_dist.errors import DataError, EndpointError, SynthesisError
from openai_stub import Call, Reply, Stub, refusal, serving, write_well

KEY = "sk-secret-of-the-tests"


def document(i: int) -> str:
    return f"The lighthouse {i} stands on Cape {i}. It was lit in {1900 + i}."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Six documents, one of them twice, and a bad row."""
    lines = [json.dumps({"doc_id": f"d{i}", "text": document(i)}) for i in range(6)]
    lines[3:3] = ["{broken", json.dumps({"doc_id": "d1", "text": "Another text of the same id."})]
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings(corpus: Path, stub: Stub | None = None, **changed: Any) -> SynthesizeConfig:
    endpoint = {"base_url": stub.url if stub else "http://127.0.0.1:9/v1", "model": "m", "backoff_s": 0.001}
    values = {"endpoint": endpoint, "rows_per_unit": 2, "max_rejects": 2, "output": str(corpus.parent / "pairs.jsonl")}
    return SynthesizeConfig.model_validate({"corpus": (str(corpus),), **values, **changed})


def run(config: SynthesizeConfig) -> SynthesizeReport:
    units = plan_units(config.corpus, rows_per_unit=config.rows_per_unit)
    return synthesize_job.run(config, units, scan_on=map_serially, pool=lambda shares: map_serially, key=ApiKey(KEY))


def lines_of(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def asked(stub: Stub) -> Counter[str]:
    return Counter(call.document for call in stub.calls)


def failing(*numbers: int) -> Any:
    """Refuses all that is asked about these documents."""
    texts = {document(i) for i in numbers}

    def behave(call: Call) -> Reply:
        return refusal(400, "the content is filtered") if call.document in texts else write_well(call)

    return behave


def test_rows_in_the_order_of_the_corpus_for_the_compression_stage(corpus: Path) -> None:
    with serving() as stub:
        config = settings(corpus, stub, price_per_million_prompt_tokens=1000, price_per_million_completion_tokens=3000)
        report = run(config)
    rows = lines_of(config.output)
    assert [row["docs"] for row in rows] == [[document(i)] for i in range(6) for _ in range(3)]
    assert [row["data_type"] for row in rows[:3]] == ["qa", "qa", "paraphrase"]
    # A qa row is one example, a paraphrase another: 6 documents with 2 of the one and 1 of the other.
    examples = read_examples(config.output, "compression")
    assert len(examples) == 18
    assert {example.documents for example in examples} == {(document(i),) for i in range(6)}
    assert (report.n_documents, report.n_done, report.n_failed, report.n_kept) == (6, 6, 0, 0)
    assert (report.n_rejected, report.n_uncovered, report.stopped) == (2, 0, None)
    assert report.rows == {"paraphrase": 6, "qa": 12}
    # Two kinds of pairs and their check, a paraphrase and its check.
    assert report.usage.requests == len(stub.calls) == 30
    assert (report.usage.prompt_tokens, report.usage.completion_tokens) == (stub.prompt_tokens, stub.completion_tokens)
    assert report.cost == pytest.approx(stub.prompt_tokens / 1000 + 3 * stub.completion_tokens / 1000)
    assert lines_of(config.failures_path) == []
    assert [reject["line"] for reject in lines_of(config.rejects_path)] == [4, 5]
    assert json.loads(Path(config.summary_path).read_text())["usage"]["requests"] == 30
    assert {call.headers["authorization"] for call in stub.calls} == {f"Bearer {KEY}"}
    written = [path for path in corpus.parent.rglob("*") if path.is_file()]
    assert len(written) > 6
    assert not [path for path in written if KEY in path.read_text(encoding="utf-8")]


def test_what_is_done_is_not_asked_again(corpus: Path) -> None:
    with serving() as stub:
        first = run(settings(corpus, stub))
        before = Path(first.output).read_bytes()
        again = run(settings(corpus, stub))
        assert len(stub.calls) == first.usage.requests
        assert (again.n_done, again.n_kept, again.usage) == (6, 6, first.usage)
        assert Path(again.output).read_bytes() == before
        # Other settings are other work.
        other = run(settings(corpus, stub, synthesis={"n_paraphrases": 0}))
        assert (other.n_kept, other.rows, other.usage.requests) == (0, {"qa": 12}, 18)


def test_failed_documents_are_listed_and_tried_again(corpus: Path) -> None:
    with serving(failing(2, 5)) as stub, pytest.raises(SynthesisError, match=r"too many documents failed(.|\n)*2 of 6"):
        run(settings(corpus, stub))
    config = settings(corpus)
    assert [row["docs"] for row in lines_of(config.output)] == [[document(i)] for i in (0, 1, 3, 4) for _ in range(3)]
    failures = lines_of(config.failures_path)
    assert [failure["doc_id"] for failure in failures] == ["d2", "d5"]
    assert all("the content is filtered" in failure["reason"] for failure in failures)
    first = json.loads(Path(config.summary_path).read_text())["usage"]
    assert (first["requests"], first["refused"]) == (22, 2)
    with serving() as second:
        report = run(settings(corpus, second))
    assert asked(second) == {document(2): 5, document(5): 5}
    assert (report.n_done, report.n_kept, report.n_failed) == (6, 4, 0)
    assert report.usage.requests == 22 + 10
    assert [row["docs"] for row in lines_of(config.output)] == [[document(i)] for i in range(6) for _ in range(3)]
    assert lines_of(config.failures_path) == []


def test_allowed_failures_end_well(corpus: Path) -> None:
    with serving(failing(0)) as stub:
        report = run(settings(corpus, stub, max_failures=0.2))
    assert (report.n_done, report.n_failed) == (5, 1)


def test_failures_beyond_what_is_allowed_stop_the_rest(corpus: Path) -> None:
    corpus.write_text("\n".join(json.dumps({"doc_id": f"d{i}", "text": document(i)}) for i in range(30)))
    with serving(failing(*range(30))) as stub, pytest.raises(SynthesisError, match="12 of 30"):
        run(settings(corpus, stub))
    # The sixth unit of two makes them more than ten.
    assert asked(stub) == {document(i): 1 for i in range(12)}
    assert not list(corpus.parent.glob("pairs.jsonl.work/stop-*"))


def test_a_budget_of_tokens_is_resumed_with_a_larger_one(corpus: Path) -> None:
    with serving() as stub:
        first = run(settings(corpus, stub, max_tokens_total=10))
        # Both documents of the first unit are under way when the first of them is finished.
        assert asked(stub) == {document(0): 5, document(1): 5}
        assert (first.n_done, first.n_documents) == (2, 6)
        spent = stub.prompt_tokens + stub.completion_tokens
        assert f"{spent:,} tokens are spent, max_tokens_total is 10" in str(first)
        nothing = run(settings(corpus, stub, max_tokens_total=spent))
        assert (nothing.n_done, len(stub.calls)) == (2, 10)
        second = run(settings(corpus, stub, max_tokens_total=10**6))
    assert (second.n_done, second.n_kept, second.stopped) == (6, 2, None)
    assert set(asked(stub).values()) == {5}
    assert second.usage.requests == 30


def test_a_budget_ends_within_a_unit(corpus: Path) -> None:
    with serving() as stub:
        config = settings(corpus, stub, rows_per_unit=8, max_tokens_total=10)
        one_by_one = config.model_copy(update={"endpoint": config.endpoint.model_copy(update={"max_concurrency": 1})})
        report = run(one_by_one)
    assert asked(stub) == {document(0): 5}
    assert (report.n_done, report.n_failed) == (1, 0)


def test_more_documents_later_cost_only_themselves(corpus: Path) -> None:
    with serving() as stub:
        first = run(settings(corpus, stub, max_documents=3))
        assert [row["docs"] for row in lines_of(first.output)] == [[document(i)] for i in range(3) for _ in range(3)]
        run(settings(corpus, stub))
    assert asked(stub) == {document(i): 5 for i in range(6)}


def test_a_refused_key_ends_the_job_and_keeps_what_is_done(corpus: Path) -> None:
    def behave(call: Call) -> Reply:
        return write_well(call) if call.index < 10 else refusal(401, f"no such key: {KEY}")

    with serving(behave) as stub, pytest.raises(EndpointError) as caught:
        run(settings(corpus, stub))
    assert "401" in str(caught.value)
    assert KEY not in str(caught.value)
    # Both documents of the second unit may be under way when the first of them is refused; nothing comes after.
    assert 11 <= len(stub.calls) <= 12
    with serving() as second:
        report = run(settings(corpus, second))
    assert asked(second) == {document(i): 5 for i in range(2, 6)}
    assert report.usage.requests == len(stub.calls) + len(second.calls)
    assert report.usage.refused == len(stub.calls) - 10


def test_facts_left_out_are_listed(corpus: Path) -> None:
    def behave(call: Call) -> Reply:
        return Reply(json.dumps({"missing": ["It is white."]})) if call.kind == "check" else write_well(call)

    with serving(behave) as stub:
        report = run(settings(corpus, stub, synthesis={"max_rounds": 0}))
    assert (report.n_done, report.n_failed, report.n_uncovered) == (6, 0, 6)
    failure = lines_of(report.files["failures"])[0]
    assert failure == {"doc_id": "d0", "reason": "key facts are left out", "missing": ["It is white."], "rows": 3}


def test_a_dry_run_asks_nothing(corpus: Path) -> None:
    with serving() as stub:
        run(settings(corpus, stub, max_documents=2))
        n_asked = len(stub.calls)
        plan = synthesize_job.plan(
            settings(corpus, stub, price_per_million_prompt_tokens=1, price_per_million_completion_tokens=2)
        )
        assert len(stub.calls) == n_asked
    assert (plan.n_documents, plan.n_left, plan.n_rejected) == (6, 4, 2)
    # Each of three rounds asks for pairs, checks them, writes the paraphrase anew and checks it.
    assert (plan.least.requests, plan.most.requests) == (4 * 5, 4 * (5 + 3 * 4))
    assert plan.costs is not None
    assert plan.costs[0] == pytest.approx((plan.least.prompt_tokens + 2 * plan.least.completion_tokens) / 1e6)
    assert "6, of which 4 are to be done" in str(plan)


def test_a_file_of_somebody_else_is_left_alone(corpus: Path) -> None:
    with pytest.raises(DataError, match="is not of this command"):
        synthesize_job.plan(settings(corpus, output=str(corpus)))


def test_the_same_unit_at_the_same_time_is_harmless(corpus: Path) -> None:
    """Ray may give a unit out twice: the last one to write has all of it."""
    from clara_dist.distributed.synthesize_workers import UnitSynthesizer

    def twice(worker: Any, arguments: Any, tasks: Any) -> Any:
        first, second = worker(**arguments), UnitSynthesizer(**arguments)

        async def both(task: Any) -> Any:
            return await asyncio.gather(asyncio.to_thread(first, task), asyncio.to_thread(second, task))

        for index, task in enumerate(tasks):
            yield index, asyncio.run(both(task))[0]

    with serving() as stub:
        config = settings(corpus, stub)
        units = plan_units(config.corpus, rows_per_unit=2)
        report = synthesize_job.run(config, units, scan_on=map_serially, pool=lambda shares: twice, key=ApiKey(None))
    assert report.n_done == 6
    assert [row["docs"] for row in lines_of(config.output)] == [[document(i)] for i in range(6) for _ in range(3)]
