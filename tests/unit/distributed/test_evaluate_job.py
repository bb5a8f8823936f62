"""The evaluation task without a cluster: which reasoner stands behind which row, and whose store it takes."""

from __future__ import annotations

import gc
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from clara_dist.config.evaluate import ROWS, EvaluateConfig
from clara_dist.config.suite import SuiteConfig
from clara_dist.data.questions import EvalQuestion
from clara_dist.distributed import dry_run, evaluate_job
from clara_dist.distributed.actor_pool import map_serially
from clara_dist.distributed.evaluate_job import absolute_paths, evaluate_model, evaluate_on, latency_lines
from clara_dist.distributed.evaluate_suite import evaluate_suite
from clara_dist.errors import ConfigError, DataError, FingerprintMismatchError
from clara_dist.evaluation import records as records_module
from clara_dist.evaluation import trec
from clara_dist.evaluation.records import AnswerRecord, read_records
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.generator import Generator
from clara_dist.model.clara import ClaraModel
from clara_dist.store import Fingerprint, StoreSchema, commit, write_shard

TEXTS = [
    "The lighthouse at Cape Merrow",
    "Rain gauges on the island",
    "Ada Tolliver, an engineer.",
    "was built in 1871",
    "emptied at nine",
    "in the morning",
]


def build(path: Path, model: Path, fingerprint: Fingerprint | None = None) -> None:
    """The store that the model's compressor makes of TEXTS."""
    clara = ClaraModel.from_pretrained(model)
    fingerprint = fingerprint or Fingerprint(clara.fingerprint_fields())
    compressed = DocumentCompressor(clara).compress([("", text) for text in TEXTS])
    schema = StoreSchema(*compressed.memory_SMD.shape[1:])
    table = schema.to_table(
        doc_ids=[f"d{i}" for i in range(len(TEXTS))],
        titles=[""] * len(TEXTS),
        texts=TEXTS,
        metadata=[{}] * len(TEXTS),
        memory_SMD=compressed.memory_SMD,
        n_tokens=compressed.n_tokens_S,
        truncated=compressed.truncated_S,
    )
    commit(path, schema, fingerprint, [write_shard(path, table, "all")], parent=None, writer_info={})


@pytest.fixture
def config(tiny_clara_dir: Path, tmp_path: Path) -> EvaluateConfig:
    """Every document is asked for by its own text."""
    build(tmp_path / "store", tiny_clara_dir)
    questions = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": f"q{i}", "question": text, "answer": "x", "positives": [f"d{i}"]}
        for i, text in enumerate(TEXTS)
    ]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return EvaluateConfig(
        model=str(tiny_clara_dir), store=str(tmp_path / "store"), questions=str(questions), max_tokens=2, recall_at=(1,)
    )


def test_the_untrained_reasoner_is_the_compressor(config: EvaluateConfig) -> None:
    report = evaluate_model(config)
    assert [row.method for row in report.methods] == [
        "BM25",
        "untrained reasoner",
        "reasoner",
        "oracle",
        "closed book",
    ]
    # A question that is a document's text, read by the compressor, has that document's memory: cosine 1.
    untrained = report["untrained reasoner"].corpus.recall
    trained = report["reasoner"].corpus.recall
    assert untrained is not None
    assert trained is not None
    assert untrained[1] == 1.0
    # The model's own reasoner has other random weights, so it cannot find them all.
    assert trained[1] < 1.0


def test_another_models_store_is_refused(config: EvaluateConfig, tiny_clara_dir: Path, tmp_path: Path) -> None:
    fields = ClaraModel.from_pretrained(tiny_clara_dir).fingerprint_fields() | {"compressor": "another"}
    build(tmp_path / "other", tiny_clara_dir, Fingerprint(fields))
    with pytest.raises(FingerprintMismatchError, match="compressor"):
        evaluate_model(config.model_copy(update={"store": str(tmp_path / "other")}))


def test_missing_questions_are_an_error(config: EvaluateConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="absent"):
        evaluate_model(config.model_copy(update={"questions": str(tmp_path / "absent.jsonl")}))


def test_pieces_are_asked_once_and_make_the_same_report(config: EvaluateConfig, tmp_path: Path) -> None:
    """An evaluation that is killed after its second piece, and goes on."""
    whole = evaluate_model(config.model_copy(update={"output": str(tmp_path / "whole")}))
    pieces = config.model_copy(update={"output": str(tmp_path / "pieces"), "questions_per_task": 2})
    asked: list[int] = []

    def pool(stop_after: int) -> Any:
        def run(worker: Any, arguments: Any, tasks: Any) -> Any:
            asked.append(len(tasks))
            for n, found in enumerate(map_serially(worker, arguments, tasks)):
                if n == stop_after:
                    raise KeyboardInterrupt
                yield found

        return run

    with pytest.raises(KeyboardInterrupt):
        evaluate_on(pool(2), pieces, "cpu")
    with pytest.raises(ConfigError, match="of something else"):
        evaluate_on(pool(9), pieces.model_copy(update={"resume": True, "top_k": 2}), "cpu")
    resumed = evaluate_on(pool(9), pieces.model_copy(update={"resume": True}), "cpu")
    assert asked == [3, 1]
    assert resumed.to_dict() == whole.to_dict()
    assert read_records(tmp_path / "pieces/answers.parquet") == list(resumed.records)
    files = {str(path.relative_to(tmp_path / "pieces")) for path in (tmp_path / "pieces").rglob("*") if path.is_file()}
    runs = {f"runs/{name}-corpus.trec" for name in ("BM25", "reasoner", "untrained-reasoner")} | {"runs/qrels.trec"}
    written = {"answers.parquet", "latency.json", "report.html", "report.json", "settings.json", "table.txt"}
    assert files == runs | written
    (line,) = latency_lines(pieces)
    assert line in (tmp_path / "pieces/report.html").read_text(encoding="utf-8")
    latency = json.loads((tmp_path / "whole/latency.json").read_text())
    assert set(latency["ms_per_question"]) == {"BM25", "untrained reasoner", "reasoner", "answers"}
    assert all(value > 0 for value in latency["ms_per_question"].values())
    # Asked once, in the first piece, and kept over the interruption.
    for name in ("whole", "pieces"):
        alone = json.loads((tmp_path / name / "latency.json").read_text())["alone"]
        assert alone["questions"] == {"whole": 6, "pieces": 2}[name]
        assert set(alone["ms"]) == {"reason", "retrieve", "generate", "total"}
        (line,) = latency_lines(config.model_copy(update={"output": str(tmp_path / name)}))
        assert f"total {alone['ms']['total']['p50']:.1f} / " in line


def test_neither_questions_nor_records_are_held(
    config: EvaluateConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 questions, 4 a task, 3 tasks a wave; five records each. The report is that of one piece all the same."""
    rows = [
        {"question_id": f"q{i}", "question": TEXTS[i % 6], "positives": [f"d{i % 6}"], "answer": "x"} for i in range(40)
    ]
    Path(config.questions).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = config.model_copy(update={"max_tokens": 1, "latency_questions": 0})
    whole = evaluate_model(config.model_copy(update={"output": str(tmp_path / "whole")}))
    monkeypatch.setattr(evaluate_job, "_WAVE", 3)
    monkeypatch.setattr(records_module, "_PIECE", 8)
    most: Counter[type] = Counter()

    def look() -> None:
        alive = Counter(type(each) for each in gc.get_objects())
        for kind in (EvalQuestion, AnswerRecord):
            most[kind] = max(most[kind], alive[kind])

    def pool(worker: Any, arguments: Any, tasks: Any) -> Any:
        for found in map_serially(worker, arguments, tasks):
            look()
            yield found

    lines = trec._lines

    def looked_at(record: AnswerRecord, tag: str) -> Any:
        if record.question_id.endswith("9"):
            look()
        return lines(record, tag)

    monkeypatch.setattr(trec, "_lines", looked_at)
    output = tmp_path / "pieces"
    report = evaluate_on(pool, config.model_copy(update={"output": str(output), "questions_per_task": 4}), "cpu")
    # A piece that is being written and one that is being made; of questions a wave, and the next one's first.
    assert 12 <= most[EvalQuestion] <= 16
    assert 20 <= most[AnswerRecord] <= 2 * 20 + 8
    assert len(report.records) == 200
    assert report.to_dict() == whole.to_dict()
    for name in ("runs/BM25-corpus.trec", "runs/qrels.trec", "table.txt"):
        assert (output / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_what_is_finished_is_only_read(config: EvaluateConfig, tmp_path: Path) -> None:
    def nobody(*_: Any) -> Any:
        raise AssertionError("asked again")

    config = config.model_copy(update={"output": str(tmp_path / "out"), "resume": True})
    report = evaluate_model(config)
    assert evaluate_on(nobody, config, "cpu").to_dict() == report.to_dict()
    # What is evaluated otherwise, or without resume, is evaluated anew.
    for changes in ({"max_tokens": 3}, {"resume": False}):
        with pytest.raises(AssertionError, match="asked again"):
            evaluate_on(nobody, config.model_copy(update=changes), "cpu")


def test_a_suite_evaluates_each_data_set_into_a_directory_of_its_own(config: EvaluateConfig, tmp_path: Path) -> None:
    own = {"store": config.store, "questions": config.questions}
    suite = SuiteConfig(
        about="two of <them>",
        output=str(tmp_path / "suite"),
        settings={"model": config.model, "max_tokens": 2, "recall_at": [1], "resume": True},
        datasets={"a": own, "b": {**own, "max_tokens": 3, "published": {"untrained reasoner, corpus, R@1": 0.5}}},
    )
    asked: list[str] = []

    def evaluate(config: EvaluateConfig) -> Any:
        asked.append(Path(str(config.output)).name)
        return evaluate_model(config)

    reports = evaluate_suite(suite, evaluate)
    assert asked == list(reports) == ["a", "b"]
    assert {report.max_tokens for report in reports.values()} == {2, 3}
    output = tmp_path / "suite"
    tree = json.loads((output / "suite.json").read_text())
    assert tree["b"] == json.loads((output / "b/report.json").read_text())
    text = (output / "suite.txt").read_text()
    assert text.index("== a") < text.index("== b") < text.index("published")
    assert text.rstrip().endswith("1.0000      0.5000")
    page = (output / "index.html").read_text()
    assert "two of &lt;them&gt;" in page
    assert "href='b/report.html'" in page
    assert (output / "b/report.html").is_file()


def test_text_rag_reads_the_text_of_what_the_reasoner_found(config: EvaluateConfig) -> None:
    changes = {"text_rag": True, "max_tokens": 4}
    report = evaluate_model(config.model_copy(update=changes))
    assert [row.method for row in report.methods][-1] == "text RAG"
    generator = Generator(ClaraModel.from_pretrained(config.model))
    (own,) = [r for r in report.records if (r.method, r.question_id) == ("text RAG", "q2")]
    (found,) = [r for r in report.records if (r.method, r.question_id) == ("reasoner", "q2")]
    assert own.doc_ids == found.doc_ids
    text = TEXTS[int(own.doc_ids[0][1:])]
    prompt = generator.clara.tokenizer.text_prompt(TEXTS[2], [text])
    assert own.answer == generator.generate_ids([prompt], max_tokens=4)[0].text
    assert report["text RAG"].corpus.recall is None


def test_reasoners_of_other_models_have_rows_of_the_same_report(
    config: EvaluateConfig, tiny_clara_dir: Path, tmp_path: Path
) -> None:
    """One whose reasoner is the compressor finds what the compressor finds; nobody else's row changes by it."""
    alone = evaluate_model(config)
    guest = ClaraModel.from_pretrained(tiny_clara_dir)
    guest.copy_role("compressor", "query_reasoner")
    guest.save_pretrained(tmp_path / "guest")
    report = evaluate_model(config.model_copy(update={"reasoners": {"hard": str(tmp_path / "guest")}}))
    names = [row.method for row in report.methods]
    assert names == ["BM25", "untrained reasoner", "hard", "reasoner", "oracle", "closed book"]
    assert set(names) - {"hard"} <= set(ROWS)
    assert report["hard"].corpus == report["untrained reasoner"].corpus
    assert report["hard"].corpus != report["reasoner"].corpus
    assert [r for r in report.records if r.method != "hard"] == list(alone.records)

    guest.copy_role("generator", "compressor")
    guest.save_pretrained(tmp_path / "other")
    other = config.model_copy(update={"reasoners": {"hard": str(tmp_path / "other")}})
    with pytest.raises(FingerprintMismatchError, match=r"the reasoner hard .* differ in: compressor"):
        evaluate_model(other)
    with pytest.raises(FingerprintMismatchError, match=r"the reasoner hard .* differ in: compressor"):
        dry_run.evaluate(other)
    with pytest.raises(ValidationError, match="there is a row 'BM25' already"):
        EvaluateConfig(model="m", store="s", questions="q", reasoners={"BM25": "m"})


def test_judgements_of_a_file_evaluate_retrieval_alone(config: EvaluateConfig, tmp_path: Path) -> None:
    (tmp_path / "queries.jsonl").write_text(
        "".join(json.dumps({"_id": f"q{i}", "text": text}) + "\n" for i, text in enumerate(TEXTS)), encoding="utf-8"
    )
    (tmp_path / "test.tsv").write_text("query-id\tcorpus-id\tscore\nq0\td0\t2\nq0\td1\t1\nq2\td2\t1\nq3\td0\t0\n")
    changes = {"questions": str(tmp_path / "queries.jsonl"), "qrels": str(tmp_path / "test.tsv"), "recall_at": (1, 2)}
    report = evaluate_model(config.model_copy(update=changes))
    assert [row.method for row in report.methods] == ["BM25", "untrained reasoner", "reasoner"]
    assert report.n_questions == 2
    untrained = report["untrained reasoner"].corpus
    assert untrained.recall is not None
    assert (untrained.recall[1], untrained.answers) == ((0.5 + 1) / 2, None)


def test_the_task_finds_its_files_wherever_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = EvaluateConfig(
        model="m", store="s3://bucket/s", questions="q.jsonl", base_model="hub/base", reasoners={"hard": "h"}
    )
    found = absolute_paths(given)
    assert found.reasoners == {"hard": str(tmp_path / "h")}
    assert (found.model, found.questions) == (str(tmp_path / "m"), str(tmp_path / "q.jsonl"))
    assert (found.store, found.base_model) == ("s3://bucket/s", "hub/base")
