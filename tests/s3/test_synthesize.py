"""A synthesis whose corpus, work and output lie in a bucket."""

from __future__ import annotations

import json
from collections.abc import Callable

from clara_dist.config.synthesize import SynthesizeConfig
from clara_dist.data.corpus import plan_units
from clara_dist.data.examples import read_examples
from clara_dist.distributed import synthesize_job
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.synthesize_report import SynthesizeReport
from clara_dist.distributed.synthesize_workers import ApiKey
from clara_dist.store import files
from openai_stub import serving


def test_a_corpus_in_a_bucket_is_synthesised_into_it(s3_url: Callable[[str], str]) -> None:
    texts = [f"The lighthouse {i} was lit in {1900 + i}." for i in range(5)]
    lines = [json.dumps({"doc_id": f"d{i}", "text": text}) for i, text in enumerate(texts)]
    files.write(s3_url("c/a.jsonl"), "\n".join(lines).encode())

    def run(url: str, max_documents: int | None) -> SynthesizeReport:
        config = SynthesizeConfig.model_validate(
            {
                "corpus": (s3_url("c/a.jsonl"),),
                "output": s3_url("made/pairs.jsonl"),
                "endpoint": {"base_url": url, "model": "m"},
                "rows_per_unit": 2,
                "max_documents": max_documents,
            }
        )
        units = plan_units(config.corpus, rows_per_unit=2)
        return synthesize_job.run(
            config, units, scan_on=map_serially, pool=lambda shares: map_serially, key=ApiKey(None)
        )

    with serving() as stub:
        run(stub.url, 3)
        report = run(stub.url, None)
        assert len(stub.calls) == report.usage.requests == 5 * 5
    assert (report.n_done, report.n_kept) == (5, 3)
    found = [example.documents for example in read_examples(s3_url("made/pairs.jsonl"), "compression")]
    assert found == [(text,) for text in texts for _ in range(3)]
    assert files.size_bytes(s3_url("made/pairs.jsonl.summary.json"))
    assert files.size_bytes(s3_url("made/pairs.jsonl.failures.jsonl")) == 0
