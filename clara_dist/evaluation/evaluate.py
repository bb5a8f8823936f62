"""Retrieval and answers of several methods on the same questions, read by the same generator."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from clara_dist.data.questions import EvalQuestion
from clara_dist.errors import DataError
from clara_dist.evaluation.answers import score_answer
from clara_dist.evaluation.measures import first_positive, measure_rankings
from clara_dist.evaluation.rankers import Corpus, CorpusDocument, Ranker, Ranking, known_rows
from clara_dist.evaluation.records import AnswerRecord, Scope
from clara_dist.evaluation.report import EvaluationReport

ORACLE = "oracle"
TEXT_RAG = "text RAG"
CLOSED_BOOK = "closed book"

DocIds = tuple[str, ...]
# What is read for one question: its position in the list of questions, and the documents, best first.
Reading = tuple[int, DocIds]


class HasText(Protocol):
    """One generated answer."""

    @property
    def text(self) -> str: ...


class AnswerGenerator(Protocol):
    """Answers from memories, such as `clara_dist.inference.generator.Generator`; must be deterministic."""

    def generate(
        self, questions: Sequence[str], memory_BKMD: Sequence[Tensor] | None, *, max_tokens: int
    ) -> Sequence[HasText]: ...


class TextReader(Protocol):
    """Answers from the text of documents."""

    def answer(
        self, questions: Sequence[str], texts_BK: Sequence[Sequence[str]], *, max_tokens: int
    ) -> Sequence[HasText]:
        """One answer for each question, from its texts."""


def evaluate(
    questions: Sequence[EvalQuestion],
    corpus: Corpus,
    rankers: Mapping[str, Ranker],
    generator: AnswerGenerator,
    *,
    top_k: int = 1,
    recall_at: Sequence[int] = (1, 3, 5),
    max_tokens: int = 32,
    batch_size: int = 64,
) -> EvaluationReport:
    """Compare retrieval methods by Recall@k and by the answers that one generator gives from what they found.

    Every method's documents are read by the same generator, so that rows differ by retrieval alone. Two rows frame
    them: the oracle reads the right documents (all of a question's positives), and ``closed book`` reads none.

    Where the store holds long documents as passages, methods rank passages and the generator reads ``top_k`` of them.
    Questions name documents: Recall@k is the share of a question's positive documents of which some passage is among
    the first k passages, and the oracle reads of each positive the first passage that holds a right answer word for
    word (the first one if none does).

    Args:
        questions: With positives; candidates in all or in none, and so the answers: without them only retrieval is
            evaluated.
        corpus: The memory store.
        rankers: Row name -> method, in the table's order.
        generator: Reads memories, greedily.
        top_k: Documents read per question.
        recall_at: The k of Recall@k.
        max_tokens: Longest answer.
        batch_size: Questions whose memories are held at once.

    Raises:
        DataError: There are no questions, a question has fewer candidates than ``top_k``, or names a document that the
            store lacks.
    """
    asked = survey(questions, top_k)
    records = answer_records(
        questions,
        corpus,
        rankers,
        generator,
        top_k=top_k,
        recall_at=recall_at,
        max_tokens=max_tokens,
        batch_size=batch_size,
    )
    facts = asked.facts(corpus.n_parents, corpus.n_documents, top_k, max_tokens)
    return EvaluationReport.of(records, recall_at, **facts)


@dataclass(frozen=True)
class Asked:
    """What questions have in common.

    Attributes:
        n: How many there are.
        n_candidates: Fewest and most that a question names; None where they name none.
        digest: SHA-256 of them all.
    """

    n: int
    n_candidates: tuple[int, int] | None
    digest: str

    @property
    def scopes(self) -> list[Scope]:
        """What can be searched: the questions' own candidates, where they name some, and the corpus."""
        return ["corpus"] if self.n_candidates is None else ["candidates", "corpus"]

    def facts(self, n_documents: int, n_passages: int, top_k: int, max_tokens: int) -> dict[str, Any]:
        """What a report says beside its records."""
        return {
            "n_questions": self.n,
            "n_documents": n_documents,
            "n_passages": n_passages,
            "n_candidates": self.n_candidates,
            "top_k": top_k,
            "max_tokens": max_tokens,
        }


def survey(questions: Iterable[EvalQuestion], top_k: int) -> Asked:
    """Look at every question once, and hold none.

    Raises:
        DataError: As `evaluate`.
    """
    n, fewest, poorest, most, has_answers = 0, sys.maxsize, "", 0, False
    digest = hashlib.sha256()
    for question in questions:
        if n and bool(question.answers) != has_answers:
            raise DataError("answers must be given for all questions or for none")
        has_answers = bool(question.answers)
        if len(question.candidates) < fewest:
            fewest, poorest = len(question.candidates), question.question_id
        most = max(most, len(question.candidates))
        digest.update(json.dumps(asdict(question)).encode())
        n += 1
    if not n:
        raise DataError("there are no questions to evaluate on")
    if most and fewest < top_k:
        raise DataError(
            f"question {poorest!r} has fewer candidates than are to be read",
            got=fewest,
            expected=f"at least {top_k} (top_k)",
        )
    return Asked(n, (fewest, most) if most else None, digest.hexdigest())


def answer_records(
    questions: Sequence[EvalQuestion],
    corpus: Corpus,
    rankers: Mapping[str, Ranker],
    generator: AnswerGenerator,
    *,
    top_k: int,
    recall_at: Sequence[int],
    max_tokens: int,
    batch_size: int = 64,
    text_reader: TextReader | None = None,
) -> list[AnswerRecord]:
    """Some questions' records of all methods and scopes; arguments and errors as of `evaluate`.

    Questions do not influence each other, so those of a file may be done in any pieces. A ``text_reader`` answers once
    more, as the row ``text RAG``, from the text of what the last ranker found.
    """
    scopes = survey(questions, top_k).scopes
    known_rows(corpus, [question.positives for question in questions])
    depth = max(top_k, *recall_at)
    ranked = {
        (name, scope): _rank(ranker, scope, questions, depth) for name, ranker in rankers.items() for scope in scopes
    }
    read = {key: [ranking.doc_ids[:top_k] for ranking in rankings] for key, rankings in ranked.items()}
    answers: dict[Reading, str] = {}
    if questions[0].answers:
        oracle = [_right_passages(question, corpus) for question in questions]
        for scope in scopes:
            read[ORACLE, scope] = oracle
            read[CLOSED_BOOK, scope] = [()] * len(questions)
        answers = _answers(questions, corpus, generator, read.values(), max_tokens, batch_size)
    texts: dict[Reading, str] = {}
    if text_reader is not None and questions[0].answers:
        last = list(rankers)[-1]
        for scope in scopes:
            read[TEXT_RAG, scope] = read[last, scope]
        readings = [read[TEXT_RAG, scope] for scope in scopes]
        texts = _text_answers(questions, corpus, text_reader, readings, max_tokens, batch_size)
    records = []
    for (method, scope), doc_ids_B in read.items():
        given = texts if method == TEXT_RAG else answers
        rankings = ranked.get((method, scope))
        named = None if rankings is None else _positives_found(questions, corpus, [r.doc_ids for r in rankings])
        measures = None if named is None else measure_rankings(questions, named, recall_at, depth)
        for i, (question, doc_ids) in enumerate(zip(questions, doc_ids_B, strict=True)):
            answer = given.get((i, doc_ids))
            record = AnswerRecord(
                question_id=question.question_id,
                question=question.question,
                method=method,
                scope=scope,
                doc_ids=doc_ids,
                answer=answer,
                right_answers=question.answers,
                scores=None if answer is None else score_answer(answer, question.answers),
                positives=question.positives,
            )
            if rankings is not None and named is not None and measures is not None:
                record = replace(
                    record,
                    ranking=named[i],
                    ranking_scores=rankings[i].scores,
                    first_positive=first_positive(question, named[i]),
                    measures=measures[i],
                )
            records.append(record)
    return records


def _rank(ranker: Ranker, scope: Scope, questions: Sequence[EvalQuestion], depth: int) -> list[Ranking]:
    rank = ranker.in_corpus if scope == "corpus" else ranker.among_candidates
    return rank(questions, depth)


def _right_passages(question: EvalQuestion, corpus: Corpus) -> DocIds:
    """Of each positive the row that holds an answer, or the first."""
    chosen = []
    for rows in corpus.rows_of_documents(question.positives):
        passages = corpus.documents(rows)
        holding = (p for p in passages if score_answer(p.text, question.answers).cover_match)
        chosen.append(next(holding, passages[0]).doc_id)
    return tuple(chosen)


def _positives_found(questions: Sequence[EvalQuestion], corpus: Corpus, ranking: Sequence[DocIds]) -> list[DocIds]:
    """Rankings that name the positives as the questions do, whichever of their rows were found."""
    named = []
    for question, doc_ids in zip(questions, ranking, strict=True):
        rows_of_each = corpus.rows_of_documents(question.positives)
        positive_of = {
            row_id: positive
            for positive, rows in zip(question.positives, rows_of_each, strict=True)
            for row_id in corpus.doc_ids(rows)
        }
        named.append(tuple(positive_of.get(doc_id, doc_id) for doc_id in doc_ids))
    return named


def _answers(
    questions: Sequence[EvalQuestion],
    corpus: Corpus,
    generator: AnswerGenerator,
    read: Iterable[Sequence[DocIds]],
    max_tokens: int,
    batch_size: int,
) -> dict[Reading, str]:
    """Every distinct reading is generated once: methods that read the same get the same answer, and it is cheaper."""
    distinct = dict.fromkeys((i, doc_ids) for doc_ids_B in read for i, doc_ids in enumerate(doc_ids_B))
    answers: dict[Reading, str] = {}
    for with_memory in (True, False):
        readings = [reading for reading in distinct if bool(reading[1]) == with_memory]
        for start in range(0, len(readings), batch_size):
            batch = readings[start : start + batch_size]
            rows = known_rows(corpus, [doc_ids for _, doc_ids in batch])
            generated = generator.generate(
                [questions[i].question for i, _ in batch],
                [torch.from_numpy(corpus.take_memory(rows_K)) for rows_K in rows] if with_memory else None,
                max_tokens=max_tokens,
            )
            answers.update(zip(batch, (answer.text for answer in generated), strict=True))
    return answers


def _text_answers(
    questions: Sequence[EvalQuestion],
    corpus: Corpus,
    reader: TextReader,
    read: Iterable[Sequence[DocIds]],
    max_tokens: int,
    batch_size: int,
) -> dict[Reading, str]:
    """As `_answers`, from texts."""
    distinct = list(dict.fromkeys((i, doc_ids) for doc_ids_B in read for i, doc_ids in enumerate(doc_ids_B)))
    answers: dict[Reading, str] = {}
    for start in range(0, len(distinct), batch_size):
        batch = distinct[start : start + batch_size]
        rows = known_rows(corpus, [doc_ids for _, doc_ids in batch])
        texts_BK = [[_shown(document) for document in corpus.documents(rows_K)] for rows_K in rows]
        found = reader.answer([questions[i].question for i, _ in batch], texts_BK, max_tokens=max_tokens)
        answers.update(zip(batch, (answer.text for answer in found), strict=True))
    return answers


def _shown(document: CorpusDocument) -> str:
    return f"{document.title}\n{document.text}" if document.title else document.text
