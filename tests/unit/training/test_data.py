"""The data of a run: prepared before its first step, by one worker for all; a published file trains as it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.multiprocessing import ProcessRaisedException

from clara_dist.config import StageConfig, TrainConfig
from clara_dist.data.convert import convert
from clara_dist.data.corpus import plan_units, read_unit
from clara_dist.data.documents import Document
from clara_dist.data.examples import read_examples
from clara_dist.data.prepared import open_examples
from clara_dist.errors import DataError
from clara_dist.model import ClaraModel, TextBatch
from clara_dist.retrieval.opening import open_bank
from clara_dist.store import Fingerprint, StoreSchema, commit, write_shard
from clara_dist.training.batches import StepPlan
from clara_dist.training.collate import JointCollator
from clara_dist.training.data import check_run, data_folder, prepare_run, run_tokenizer, summary, table
from clara_dist.training.loop import run
from gloo_ranks import run_on_ranks

PARAGRAPHS = {name: [f"{name} was built in 18{i}0.", f" It is {i} m high."] for i, name in enumerate("ABCDEF", 1)}


@pytest.fixture
def hotpot(tmp_path: Path) -> str:
    """Four questions over three of six paragraphs each, as HotpotQA's file has them."""
    names = list(PARAGRAPHS)
    rows = [
        {
            "_id": f"q{i}",
            "question": f"When was {names[i]} built?",
            "answer": f"18{i + 1}0",
            "supporting_facts": [[names[i], 0]],
            "context": [[name, PARAGRAPHS[name]] for name in (names[i + 1], names[i], names[i + 2])],
        }
        for i in range(4)
    ]
    path = tmp_path / "hotpot_train.json"
    path.write_text(json.dumps(rows), encoding="utf-8")
    return str(path)


def compressed(documents: list[Document], clara_dir: Path, path: Path) -> str:
    """A store of the documents, each encoded as a compression job encodes it."""
    clara = ClaraModel.from_pretrained(clara_dir)
    tokenizer = clara.tokenizer
    encoded = tokenizer.encode_texts([tokenizer.document_text(d.title, d.text) for d in documents])
    with torch.no_grad():
        batches = [TextBatch.from_ids([e.ids], tokenizer.pad_id) for e in encoded]
        memory = torch.cat([clara.encode("compressor", batch).memory_BMD for batch in batches])
    memory_SMD = memory.to(torch.float16).numpy()
    schema = StoreSchema(*memory_SMD.shape[1:], {})
    table = schema.to_table(
        doc_ids=[d.doc_id for d in documents],
        titles=[d.title for d in documents],
        texts=[d.text for d in documents],
        metadata=[{} for _ in documents],
        memory_SMD=memory_SMD,
        n_tokens=[e.n_tokens for e in encoded],
        truncated=[e.truncated for e in encoded],
    )
    commit(path, schema, Fingerprint(clara.fingerprint_fields()), [write_shard(path, table, "unit-0")])
    return str(path)


def test_published_file_to_corpus_to_store_to_joint_training(
    tmp_path: Path, hotpot: str, tiny_clara_dir: Path, make_config: Any
) -> None:
    converted = str(tmp_path / "hotpot.jsonl")
    convert(hotpot, converted)
    found = [item for unit in plan_units(converted) for item in read_unit(unit)]
    documents = list({d.doc_id: d for d in found if isinstance(d, Document)}.values())
    assert sorted(d.text for d in documents) == [
        f"{n}\n{' '.join(s.strip() for s in p)}" for n, p in PARAGRAPHS.items()
    ]
    store = compressed(documents, tiny_clara_dir, tmp_path / "hotpot-store")

    # The published file itself trains: each candidate's row holds the paragraph, and the right one is known.
    clara = ClaraModel.from_pretrained(tiny_clara_dir)
    bank = open_bank(store, clara.fingerprint_fields())
    examples = read_examples(hotpot, "joint")
    batch = JointCollator(clara.tokenizer, bank)(examples, StepPlan(1, False))
    assert batch.candidates_BN is not None
    ids = [d.doc_id for d in documents]
    assert [[ids[row] for row in rows] for rows in batch.candidates_BN.tolist()] == [
        list(e.candidate_ids) for e in examples
    ]
    right = [documents[rows[0][0]].text.partition("\n")[0] for rows in batch.positives_B]
    assert right == ["A", "B", "C", "D"]
    # What the instruct stage would compress on the fly is what the store holds.
    text = read_examples(hotpot, "instruct")[0].documents[0]
    encoded = clara.tokenizer.encode_texts([clara.tokenizer.document_text("", text)])[0]
    with torch.no_grad():
        memory = clara.encode("compressor", TextBatch.from_ids([encoded.ids], clara.tokenizer.pad_id)).memory_BMD[0]
    row = ids.index(examples[0].candidate_ids[0])
    stored = bank.gather(np.array([row]))[0]
    torch.testing.assert_close(stored, memory.half().float(), rtol=0, atol=0)

    config = make_config("joint", stage="joint", data=hotpot, store=store, steps=2)
    run(config.model_copy(update={"model": str(tiny_clara_dir)}))


def test_a_candidate_that_the_store_lacks_is_told_before_the_first_step(make_joint_config: Any, tmp_path: Path) -> None:
    config = make_joint_config("missing")
    data = Path(config.stages[0].data)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[-1]["docs"].append("A text that nobody compressed.")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    events: list[Any] = []
    with pytest.raises(DataError, match=r"not in the memory store\n.*got: 1 of 9, first: "):
        run(config, on_progress=events.append)
    assert not any(event.step for event in events)


def test_all_stages_are_prepared_before_the_first_step(make_config: Any, rows_path: str, tmp_path: Path) -> None:
    config = make_config("a", steps=1)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(Path(rows_path).read_text() + '{"data_type": "qa"}\n')
    second = StageConfig.model_validate(config.stages[0].model_dump() | {"stage": "instruct", "data": str(bad)})
    events: list[Any] = []
    with pytest.raises(DataError, match=r"bad\.jsonl, line 9: missing docs"):
        run(config.model_copy(update={"stages": (*config.stages, second)}), on_progress=events.append)
    assert not any(event.step for event in events)


def test_all_workers_end_if_the_first_cannot_read_the_data(make_config: Any, rows_path: str, tmp_path: Path) -> None:
    with Path(rows_path).open("a") as file:
        file.write("{\n")
    with pytest.raises(ProcessRaisedException, match=r"line 9: invalid JSON|another worker of the run found an error"):
        run_on_ranks([make_config("bad", workers=2, steps=1)], 2, tmp_path / "rendezvous")


def test_what_was_prepared_is_not_read_again(make_config: Any, rows_path: str) -> None:
    config = make_config("a", steps=1)
    lines: list[str] = []
    prepare_run(config, lines.append)
    Path(rows_path).unlink()  # the driver has read it; workers need not see it
    run(config, data_is_prepared=True)
    assert lines[0].startswith(f"stage compression: 8 examples from {rows_path}; prompts of ")
    assert len(open_examples(data_folder(config.run_dir, "compression"))) == 8
    with pytest.raises(DataError, match="there is no file"):
        run(make_config("b", steps=1))
    prepare_run(config, lines.append)  # the stage is done: nothing to prepare
    assert len(lines) == 1


def test_the_tokenizer_is_that_of_the_model_without_its_weights(make_config: Any, tiny_clara_dir: Path) -> None:
    described = make_config("a")
    new, trained = run_tokenizer(described), run_tokenizer(described.model_copy(update={"model": str(tiny_clara_dir)}))
    assert new is not None
    assert trained is not None
    assert new.fingerprint() == ClaraModel.from_base(described.model).tokenizer.fingerprint()
    assert trained.config == ClaraModel.from_pretrained(tiny_clara_dir).tokenizer.config
    assert run_tokenizer(described.model_copy(update={"model": "runs/not/there"})) is None


def test_check_tells_of_every_stage_what_it_holds(make_config: Any, rows_path: str) -> None:
    config: TrainConfig = make_config("a", evaluation={"data": rows_path})
    (key, stage, lengths), (held_out, _, same) = check_run(config)
    assert (key, lengths.rows, lengths.examples) == ("compression", 8, 8)
    assert (held_out, same) == ("compression, held out", lengths)
    shown = table(key, stage, lengths)
    assert "8 rows, 8 examples (all of them measured)" in shown
    assert "answers cut: 0 of 8" in shown
    assert summary(stage, lengths).startswith(f"8 examples from {stage.data}; prompts of ")
    assert not Path(config.run_dir).exists()
