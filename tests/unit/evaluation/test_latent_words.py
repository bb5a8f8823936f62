"""Words of query vectors, counted over questions: by hand on made-up vectors, and against `explain` on a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import DataError
from clara_dist.evaluation.latent_words import _counts, count_words
from clara_dist.inference.answering import Source
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.explain import Explanation, Word, explain
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model import ClaraModel
from clara_dist.store import Fingerprint, MemoryStore, StoreSchema, commit, write_shard

TEXTS = ["The lighthouse was built in 1871", "rain gauges on the island", "Cape Merrow at nine in the morning"]


def word(text: str, question: str, document: str, *, is_word: bool = True) -> Word:
    inside = [is_word and text.casefold() in part.casefold().split() for part in (document, question)]
    return Word(text, 0, 0.5, 1.0, is_word, inside[0], inside[1])


def test_counts_by_hand() -> None:
    gold = [Source("a", "a", "", 1.0, "tower built 1871 stone"), Source("b", "b", "", 1.0, "rain on stone")]
    questions = [
        EvalQuestion("1", "which tower", ("in 1871",), ("a",)),
        EvalQuestion("2", "what falls", ("rain",), ("b",)),
    ]
    vectors = [[["Tower", "1871", "stone"], ["stone", "sea"]], [["falls", "snow", "built"]]]
    found = [
        Explanation(q.question, s, tuple(tuple(word(w, q.question, s.text) for w in v) for v in vs))
        for q, s, vs in zip(questions, gold, vectors, strict=True)
    ]
    counts = _counts("trained", found, gold, questions)
    assert counts.gold_words == (2 + 0) / 2  # 1871 and stone (once); "tower" is in the question
    assert counts.with_gold_word == 0.5
    assert counts.with_answer_word == 0.5
    assert counts.other_words == (1 + 1) / 2  # stone in b; built in a


def test_both_reasoners_are_counted_on_a_model(tiny_clara_dir: Path, tmp_path: Path) -> None:
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    made = DocumentCompressor(ClaraModel.from_pretrained(tiny_clara_dir)).compress([("", text) for text in TEXTS])
    schema = StoreSchema(*made.memory_SMD.shape[1:])
    table = schema.to_table(
        doc_ids=["d0", "d1", "d2"],
        titles=[""] * 3,
        texts=TEXTS,
        metadata=[{}] * 3,
        memory_SMD=made.memory_SMD,
        n_tokens=made.n_tokens_S,
        truncated=made.truncated_S,
    )
    commit(tmp_path, schema, Fingerprint(clara.fingerprint_fields()), [write_shard(tmp_path, table, "a")])
    store = MemoryStore.open(tmp_path)
    questions = [EvalQuestion(f"q{i}", f"Why {i}?", (), (f"d{i}",)) for i in range(3)]
    done: list[int] = []
    report = count_words(clara, store, questions, n_words=200, on_done=done.append)
    assert sum(done) == 6
    for counts, role in zip(report.counts, ("compressor", "query_reasoner"), strict=True):
        query = torch.from_numpy(Reasoner(clara, role=role).query([q.question for q in questions])).view(3, 3, -1)  # type: ignore[arg-type]
        sources = [Source(f"d{i}", f"d{i}", "", 1.0, text) for i, text in enumerate(TEXTS)]
        expected = [len(e.added_words) for e in explain(clara, [q.question for q in questions], query, sources, 200)]
        assert counts.gold_words == pytest.approx(np.mean(expected))
        assert counts.gold_words > 0
        assert counts.with_answer_word is None
    assert "untrained" in report.table()
    with pytest.raises(DataError, match="'d9'"):
        count_words(clara, store, [EvalQuestion("q", "Why?", (), ("d9",))])
