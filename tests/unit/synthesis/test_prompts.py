from __future__ import annotations

import pytest

from clara_dist.synthesis import prompts
from clara_dist.synthesis.answers import parse_missing, parse_pairs, parse_paraphrases

ALL = [prompts.SIMPLE, prompts.COMPLEX, prompts.PARAPHRASE, prompts.CHECK]


def test_filling_is_blind_to_what_is_filled_in() -> None:
    text = prompts.fill('{n} of {document}: {"json": [{other}]}', n=3, document="{n} {document} {0} \\1 {")
    assert text == '3 of {n} {document} {0} \\1 {: {"json": [{other}]}'


@pytest.mark.parametrize("prompt", ALL)
def test_all_prompts_begin_with_the_document(prompt: str) -> None:
    """An endpoint's prefix cache then reads a document once."""
    assert prompt.startswith("<document>\n{document}\n</document>\n\n")
    assert prompt.count("{document}") == 1


def test_the_form_that_a_prompt_shows_is_the_form_that_is_read() -> None:
    def shown(prompt: str) -> str:
        return prompt.splitlines()[-1].replace(", ...]", "]").replace("...", "x")

    for prompt in (prompts.SIMPLE, prompts.COMPLEX):
        assert [(pair.question, pair.answer) for pair in parse_pairs(shown(prompt), at_most=1)] == [("x", "x")]
    assert parse_paraphrases(shown(prompts.PARAPHRASE), exactly=1, document="d") == ["x"]
    assert parse_missing(shown(prompts.CHECK)) == ["x"]


def test_what_is_missing_is_listed_behind_the_whole_prompt() -> None:
    asked = prompts.for_missing_pairs("PROMPT", ["Who {facts}?"], ["A is {questions}.", "B."])
    assert asked.startswith("PROMPT\n")
    assert "- Who {facts}?\n" in asked
    assert asked.endswith("\n- A is {questions}.\n- B.")
    asked = prompts.for_missing_in_paraphrase("PROMPT", "So {facts} it is.", ["A."])
    assert "<paraphrase>\nSo {facts} it is.\n</paraphrase>" in asked
    assert asked.endswith("\n- A.")
    assert prompts.asked_again("PROMPT", "it was empty").endswith("it was empty. Answer again, and avoid that.")
