"""Ids are decided by the whole string; client text never becomes a special token."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from clara_dist.config import ClaraConfig
from clara_dist.errors import TokenizationError
from clara_dist.model.batch import PromptBatch
from clara_dist.model.tokens import ClaraTokenizer
from tiny_models import TEXT, added_token, build_tokenizer

SCHEMES = ["bytelevel", "metaspace-first", "metaspace-always", "metaspace-legacy", "unigram"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}[SYS] {{ m['content'] }} [/SYS]\n"
    "{% elif m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}{{ eos_token }}{% endif %}{% endfor %}"
)
NO_SYSTEM = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system role') }}"
    "{% elif m['role'] == 'user' %}<u>{{ m['content'] | trim }}</u>{% else %}{{ m['content'] | trim }}{{ eos_token }}\n"
    "{% endif %}{% endfor %}"
)


def config(**changes: object) -> ClaraConfig:
    return ClaraConfig(**({"base_model": "unused", "n_memory_tokens": 2, "doc_max_tokens": 400} | changes))


def reference(tokenizer: PreTrainedTokenizerFast, n_memory: int) -> PreTrainedTokenizerFast:
    """The base tokenizer with the added tokens really added, in the published order."""
    names = [f"<MEM{i}>" for i in range(n_memory)] + ["<AE>", "<ENC>", "<SEP>"]
    tokenizer.add_tokens([added_token(name) for name in names])
    return tokenizer


@pytest.mark.parametrize("scheme", SCHEMES)
def test_encoder_ids_are_those_of_the_concatenated_string(scheme: str) -> None:
    ours = ClaraTokenizer(build_tokenizer(scheme), config())
    whole = reference(build_tokenizer(scheme), 2)
    texts = [*TEXT, " leading space", "trailing space ", "two  spaces", "new\nline", "naïve — unicode 漢字", "", "x"]
    for text, encoded in zip(texts, ours.encode_texts(texts), strict=True):
        expected = whole(f"<ENC><s>{text}</s>", add_special_tokens=False).input_ids
        assert encoded.ids == [*expected, *ours.memory_ids], text
        assert (encoded.n_tokens, encoded.truncated) == (len(expected), False)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_prompt_ids_are_those_of_the_rendered_string(scheme: str) -> None:
    tokenizer = build_tokenizer(scheme)
    tokenizer.chat_template = TEMPLATE
    ours = ClaraTokenizer(tokenizer, config())
    whole = reference(build_tokenizer(scheme), 2)
    head = f"<s>[SYS] {ours.config.system_prompt} [/SYS]\n[INST] Background:\n"
    tail = "\n\nQuestion:Who built it? [/INST]"
    slots = "<MEM0><MEM1><SEP>"
    for k in (0, 1, 3):
        rendered = head + slots * k + tail
        assert ours.prompt("Who built it?", k) == whole(rendered, add_special_tokens=False).input_ids
        answered = ours.prompt_with_answer("answer", k, "Who built it?", "Ada Tolliver, an engineer")
        expected = whole(rendered + " Ada Tolliver, an engineer</s>", add_special_tokens=False).input_ids
        assert answered.prompt_ids + answered.answer_ids == expected
        assert answered.answer_ids[-1] == 2
        assert ours.decode(answered.answer_ids).endswith("Ada Tolliver, an engineer")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("literal", ["</s>", "<s>", "<MEM0>", "<SEP>", "<ENC>", "<pad>"])
def test_special_tokens_in_client_text_stay_text(scheme: str, literal: str) -> None:
    tokenizer = build_tokenizer(scheme)
    tokenizer.chat_template = TEMPLATE
    ours = ClaraTokenizer(tokenizer, config())
    encoded = ours.encode_text(f"a {literal} b {literal}{literal}")
    frame = [ours.enc_id, 1]
    assert encoded.ids[:2] == frame
    assert encoded.ids[encoded.n_tokens - 1] == 2
    inside = encoded.ids[2 : encoded.n_tokens - 1]
    assert inside
    assert not {1, 2, 3}.intersection(inside)
    assert max(inside) < ours.first_memory_id
    clean, hostile = ours.prompt("why?", 2), ours.prompt(f"why? {literal}", 2)
    for special in {1, 2, 3, *ours.memory_ids, ours.sep_id}:
        assert hostile.count(special) == clean.count(special)
    document = ours.text_prompt("why?", [f"ends {literal} here"])
    assert document.count(2) == 0
    assert document.count(1) == 1


def test_a_text_that_contains_the_sentinels_is_encoded_the_same_way() -> None:
    ours = ClaraTokenizer(build_tokenizer("metaspace-first"), config())
    before = ours.encode_text("plain words").ids
    nasty = "\ue0c10\ue0c2 \ue0c11\ue0c2 \ue0c3question\ue0c4"
    assert max(ours.encode_text(nasty).ids[2:-3]) < ours.first_memory_id
    assert ours.encode_text("plain words").ids == before
    assert ours.prompt(nasty, 1).count(ours.sep_id) == 1


def test_truncation_loses_the_eos_and_says_so() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config(doc_max_tokens=4))
    encoded = ours.encode_text("one two three four five six seven")
    assert (encoded.n_tokens, encoded.truncated) == (7, True)
    assert encoded.ids[-2:] == ours.memory_ids
    assert 2 not in encoded.ids
    exact = ours.encode_text("aaaa")
    assert not exact.truncated
    assert exact.ids[exact.n_tokens - 1] == 2


def test_a_question_is_never_cut() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config(doc_max_tokens=4))
    assert ours.encode_questions(["aaaa"]) == ours.encode_texts(["aaaa"])
    with pytest.raises(TokenizationError, match="at most 4 tokens"):
        ours.encode_questions(["aaaa", "one two three four five"])


def test_a_prompt_that_is_too_long_is_an_error_not_a_cut() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config(system_prompt="", max_prompt_tokens=60))
    ours.prompt("short?", 1)
    with pytest.raises(TokenizationError, match="at most 60"):
        ours.prompt("long? " * 60, 1)
    with pytest.raises(TokenizationError, match="too long"):
        ours.prompt_with_answer("answer", 1, "short?", "long answer " * 40)


def test_template_without_system_role_that_trims_and_adds_a_newline_after_eos() -> None:
    tokenizer = build_tokenizer("bytelevel")
    tokenizer.chat_template = NO_SYSTEM
    ours = ClaraTokenizer(tokenizer, config(system_prompt="Be brief."))
    whole = reference(build_tokenizer("bytelevel"), 2)
    expected = "<s><u>Be brief.\nBackground:\n<MEM0><MEM1><SEP>\n\nQuestion:Why?</u>"
    assert ours.prompt("Why?  ", 1) == whole(expected, add_special_tokens=False).input_ids
    # The question does not begin its message, and documents do not end it.
    expected = "<s><u>Be brief.\nBackground:\n  A text. \n\nQuestion:  Why?</u>"
    assert ours.text_prompt("  Why? ", ["  A text. "]) == whole(expected, add_special_tokens=False).input_ids
    answered = ours.prompt_with_answer("answer", 1, "Why?", " Because. ")
    assert answered.answer_ids == whole("Because.</s>", add_special_tokens=False).input_ids


def test_template_that_does_not_trim_and_has_an_x_of_its_own() -> None:
    tokenizer = build_tokenizer("bytelevel")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}<text>{{ m['content'] }}</text>{% endfor %}"
    ours = ClaraTokenizer(tokenizer, config(system_prompt=""))
    whole = reference(build_tokenizer("bytelevel"), 2)
    expected = "<s><text>Background:\n<MEM0><MEM1><SEP>\n\nQuestion:Why?  </text>"
    assert ours.prompt("Why?  ", 1) == whole(expected, add_special_tokens=False).input_ids


def test_plain_template_when_the_base_has_none() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config(system_prompt="Be brief."))
    whole = reference(build_tokenizer("bytelevel"), 2)
    expected = "<s>Be brief.\n\nBackground:\n<MEM0><MEM1><SEP>\n\nQuestion:Why?\n\nAnswer:"
    assert ours.prompt("Why?", 1) == whole(expected, add_special_tokens=False).input_ids


def test_one_shared_memory_token_and_no_separator() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config(distinct_memory_tokens=False, separator=False))
    first = ours.first_memory_id
    assert ours.memory_ids == [first, first]
    assert ours.enc_id == first + 2
    ids = ours.prompt("Why?", 3)
    assert ids.count(first) == 6
    assert ours.sep_id not in ids


def test_prompt_batch_supervises_the_answer_only() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config())
    rows = [ours.prompt_with_answer("answer", k, "Why?", a) for k, a in ((1, "Because."), (2, "Ada"))]
    batch = PromptBatch.from_ids(
        [r.prompt_ids for r in rows], [r.answer_ids for r in rows], pad_id=3, memory_ids=ours.memory_ids
    )
    assert batch.labels_P.tolist() == rows[0].answer_ids + rows[1].answer_ids
    width = batch.input_ids_BL.shape[1]
    assert batch.predict_index_P[0] == len(rows[0].prompt_ids) - 1
    assert batch.predict_index_P[-1] == width + len(rows[1].prompt_ids) + len(rows[1].answer_ids) - 2
    assert len(batch.memory_index_S) == 2 * 1 + 2 * 2
    assert set(batch.input_ids_BL.flatten()[batch.memory_index_S].tolist()) == set(ours.memory_ids)
    with pytest.raises(TokenizationError, match="answer token"):
        PromptBatch.from_ids([[1]], [[]], pad_id=3, memory_ids=ours.memory_ids)


def test_text_span_finds_the_documents() -> None:
    ours = ClaraTokenizer(build_tokenizer("bytelevel"), config())
    documents = ["The lighthouse at Cape Merrow", "was built in 1871."]
    prompt = ours.text_prompt("Who built it?", documents)
    start, end = ours.text_span(prompt, documents)
    assert ours.decode(prompt[start:end]) == "\n".join(documents)
