"""The synthesis job on a real Ray, against a real HTTP endpoint."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.distributed.synthesize_job import synthesize
from openai_stub import HANG, RESET, SERVER_ERROR, Call, Reply, Stub, rate_limited, serving, write

N_DOCUMENTS = 24

# Kills its own process, with SIGKILL, as soon as the driver has heard of 6 documents.
KILLED_JOB = """
import os, signal, sys
from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.distributed import synthesize_job

class Deadly(synthesize_job.Progress):
    def add(self, n):
        super().add(n)
        if self.what == "documents" and self.done >= 6:
            os.kill(os.getpid(), signal.SIGKILL)

synthesize_job.Progress = Deadly
synthesize_job.synthesize(SynthesizeConfig.model_validate_json(sys.argv[1]), address="local", num_cpus=2)
"""


def document(i: int) -> str:
    return f"The lighthouse {i} stands on Cape {i}. It was lit in {1900 + i}. Its keeper is number {i % 7}."


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    lines = [json.dumps({"doc_id": f"d{i:02}", "text": document(i)}) for i in range(N_DOCUMENTS)]
    lines.insert(5, "{broken")
    path = tmp_path / "corpus.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def settings(corpus: Path, stub: Stub) -> SynthesizeConfig:
    endpoint = {"base_url": stub.url, "model": "m", "backoff_s": 0.01, "timeout_s": 2.0, "max_concurrency": 4}
    return SynthesizeConfig.model_validate(
        {
            "corpus": (str(corpus),),
            "output": str(corpus.parent / "pairs.jsonl"),
            "endpoint": endpoint,
            "workers": 2,
            "rows_per_unit": 2,
            "max_rejects": 1,
        }
    )


def assert_whole(config: SynthesizeConfig) -> None:
    rows = [json.loads(line) for line in Path(config.output).read_text(encoding="utf-8").splitlines()]
    kinds = ["qa", "qa", "paraphrase"]
    assert [(row["docs"], row["data_type"]) for row in rows] == [
        ([document(i)], kind) for i in range(N_DOCUMENTS) for kind in kinds
    ]


def troubled(call: Call) -> Reply:
    """Every kind of trouble now and then; also a writer that forgets the last fact at first."""
    troubles: dict[int, Reply] = {
        3: rate_limited("0"),
        11: rate_limited(),
        17: HANG,
        23: RESET,
        31: SERVER_ERROR,
        37: Reply("I am sorry, Dave."),
        41: Reply('{"pairs": [', finish_reason="length"),
        47: Reply('{"missing": [1]}'),
        53: Reply(body="<html>", status=200),
        59: HANG,
    }
    return troubles.get(call.index) or write(call, forget=1)


def test_a_troubled_endpoint_costs_retries_and_nothing_else(
    local_ray: None, corpus: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    # Workers of a Ray that runs already have another environment than the driver.
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-of-the-tests")
    with serving(troubled) as stub:
        config = settings(corpus, stub)
        report = synthesize(config)
        # Whoever hangs does so until the end, for the stub; the client has long gone on.
        assert stub.most_at_a_time <= config.endpoint.max_concurrency + 2
    assert_whole(config)
    usage = report.usage
    assert (report.n_done, report.n_failed, report.n_uncovered, report.n_rejected) == (N_DOCUMENTS, 0, 0, 1)
    # Five for a document, four more for what was forgotten; and the retries and answers of no use from below.
    assert usage.requests == len(stub.calls) == 9 * N_DOCUMENTS + 7 + 3
    assert (usage.prompt_tokens, usage.completion_tokens) == (stub.prompt_tokens, stub.completion_tokens)
    assert usage.answered == stub.completions
    assert (usage.rate_limited, usage.timeouts, usage.connection_errors) == (2, 2, 1)
    assert (usage.server_errors, usage.malformed, usage.retries) == (2, 3, 7)
    assert {call.headers["authorization"] for call in stub.calls} == {"Bearer sk-secret-of-the-tests"}
    shown = "".join(capfd.readouterr())
    assert "documents 24/24" in shown
    assert "sk-secret" not in shown + Path(config.summary_path).read_text(encoding="utf-8")


def test_a_killed_job_asks_again_only_for_what_was_under_way(
    local_ray: None, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving() as stub:
        config = settings(corpus, stub)
        # The keys tell whose requests are whose: workers outlive their driver by a moment.
        monkeypatch.setenv("OPENAI_API_KEY", "first")
        done = subprocess.run([sys.executable, "-c", KILLED_JOB, config.model_dump_json()], check=False)
        assert done.returncode == -signal.SIGKILL
        assert not Path(config.output).exists()
        kept = finished(config)
        assert 6 <= len(kept) < N_DOCUMENTS
        monkeypatch.setenv("OPENAI_API_KEY", "second")
        report = synthesize(config)
        first, second = (
            Counter(call.document for call in stub.calls if call.headers["authorization"] == f"Bearer {key}")
            for key in ("first", "second")
        )
    assert_whole(config)
    assert report.n_kept >= len(kept)
    # Nothing of what was finished is asked again, and of the rest no more documents than were under way at a time.
    assert second.keys().isdisjoint(kept)
    assert len(second.keys() & first.keys()) <= config.endpoint.max_concurrency
    assert set(second.values()) == {5}


def finished(config: SynthesizeConfig) -> set[str]:
    """The documents that a dead job's files hold."""
    entries: list[dict[str, Any]] = []
    for path in Path(config.work_dir, "units").glob("[!.]*"):
        entries += [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {row["docs"][0] for entry in entries for row in entry["rows"]}
