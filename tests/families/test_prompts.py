"""Prompts by each family's own chat template, compared with strings that were written by hand."""

from __future__ import annotations

import re

import pytest
from transformers import PreTrainedTokenizerFast

from clara_dist.config import ClaraConfig
from clara_dist.model.tokens import ClaraTokenizer
from family_models import FAMILIES, family_tokenizer
from tiny_models import added_token

QUESTION = "Who built the lighthouse?"
ANSWER = "Ada Tolliver, an engineer"


def whole_tokenizer(family: str) -> PreTrainedTokenizerFast:
    """The base's tokenizer with the added tokens really added, in the published order."""
    tokenizer = family_tokenizer(FAMILIES[family])
    tokenizer.add_tokens([added_token(name) for name in ("<MEM0>", "<MEM1>", "<AE>", "<ENC>", "<SEP>")])
    return tokenizer


def ids_of(whole: PreTrainedTokenizerFast, text: str) -> list[int]:
    return list(whole(text, add_special_tokens=False).input_ids)


@pytest.fixture
def ours(family: str) -> ClaraTokenizer:
    config = ClaraConfig(base_model="unused", n_memory_tokens=2, doc_max_tokens=100)
    return ClaraTokenizer(family_tokenizer(FAMILIES[family]), config)


@pytest.mark.parametrize("k", [0, 1, 3])
def test_prompt_and_answer_are_those_of_the_familys_string(family: str, ours: ClaraTokenizer, k: int) -> None:
    spec, whole = FAMILIES[family], whole_tokenizer(family)
    user = "Background:\n" + "<MEM0><MEM1><SEP>" * k + f"\n\nQuestion:{QUESTION}"
    rendered = spec.rendered(ours.config.system_prompt, user)
    assert ours.prompt(QUESTION, k) == ids_of(whole, rendered)
    taught = ours.prompt_with_answer("answer", k, QUESTION, ANSWER)
    expected = ids_of(whole, f"{rendered}{spec.opening}{ANSWER}{spec.closing}")
    assert taught.prompt_ids + taught.answer_ids == expected
    assert ours.decode(taught.answer_ids) == ANSWER
    # Nothing but the opening stands between what is asked at inference and what is learnt.
    assert taught.prompt_ids == ours.prompt(QUESTION, k)[: len(taught.prompt_ids)]
    assert len(taught.prompt_ids) >= len(ours.prompt(QUESTION, k)) - 1


def test_every_end_of_turn_stops_an_answer(family: str, ours: ClaraTokenizer) -> None:
    spec = FAMILIES[family]
    assert set(ours.hf.convert_tokens_to_ids([spec.eos, spec.closing])) <= ours.stop_ids


def test_turn_tokens_in_a_clients_words_stay_words(family: str, ours: ClaraTokenizer) -> None:
    spec = FAMILIES[family]
    forged = f"x {spec.closing} y"
    counts = [
        ours.prompt(question, 1).count(ours.hf.convert_tokens_to_ids(spec.closing)) for question in (forged, "x y")
    ]
    assert counts[0] == counts[1]
    assert ours.encode_text(forged).ids.count(ours.hf.convert_tokens_to_ids(spec.closing)) == (
        spec.closing == spec.eos
    ) * (1 + (spec.bos == spec.eos))


def test_no_system_prompt_leaves_no_trace_of_one(family: str) -> None:
    tokenizer = family_tokenizer(FAMILIES[family])
    bare = ClaraTokenizer(
        tokenizer, ClaraConfig(base_model="unused", n_memory_tokens=2, doc_max_tokens=100, system_prompt="")
    )
    text = tokenizer.decode(bare.prompt(QUESTION, 0))
    assert "system" not in text
    assert re.search(r"Background:\s+Question:\s?Who built the lighthouse\?", text)


def test_a_template_that_shows_past_answers_otherwise_than_it_asks_for_them() -> None:
    """Forced thoughts: the generation prompt opens one, the history leaves it out."""
    tokenizer = family_tokenizer(FAMILIES["qwen3"])
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% if thinking %}<think>\n{% else %}</think>{% endif %}"
        "{% endif %}"
    )
    ours = ClaraTokenizer(tokenizer, ClaraConfig(base_model="unused", n_memory_tokens=2, doc_max_tokens=100))
    taught = ours.prompt_with_answer("answer", 1, QUESTION, ANSWER)
    assert taught.prompt_ids == ours.prompt(QUESTION, 1)
    assert ours.decode(taught.answer_ids) == ANSWER
    assert taught.answer_ids[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.convert_tokens_to_ids("</think>") == taught.prompt_ids[-1]
