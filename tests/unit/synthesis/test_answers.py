from __future__ import annotations

import json

import pytest

from clara_dist.synthesis.answers import MalformedAnswer, Pair, parse_missing, parse_pairs, parse_paraphrases

PAIR = '{"question": "Who?", "answer": "Ada."}'
PAIRS = f'{{"pairs": [{PAIR}]}}'


@pytest.mark.parametrize(
    "text",
    [
        PAIRS,
        f"\n {PAIRS} \n",
        f"```json\n{PAIRS}\n```",
        f"```\n{PAIRS}```",
        f"<think>It says {{...}}.\n\nHm.</think>\n\n{PAIRS}",
        f"<think></think>\n```JSON \n{PAIRS}\n ```\n",
    ],
)
def test_json_is_read_bare_fenced_and_behind_thoughts(text: str) -> None:
    assert parse_pairs(text, at_most=1) == [Pair("Who?", "Ada.")]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it was empty"),
        ("```json\n```", "not the JSON|empty"),
        ("Here you are: " + PAIRS, "not the JSON"),
        (PAIRS + " Anything else?", "not the JSON"),
        (PAIRS[:-3], "not the JSON .*EOF"),
        (f"[{PAIR}]", "not the JSON"),
        ('{"pairs": {}}', "pairs: Input should be a valid (list|array)"),
        ('{"pairs": []}', "it had 0 pairs, expected 1 to 2"),
        (f'{{"pairs": [{PAIR}], "note": "x"}}', "note: Extra inputs"),
        ('{"pairs": [{"question": "Who?"}]}', r"pairs.0.answer: Field required"),
        ('{"pairs": [{"question": "Who?", "answer": 3}]}', "pairs.0.answer: Input should be a valid string"),
        ('{"pairs": [{"question": "Who?", "answer": null}]}', "pairs.0.answer"),
        ('{"pairs": [{"question": " ", "answer": "Ada"}]}', r"pairs\[0\].question is only white space"),
        ('{"pairs": [{"question": "Who?", "answer": ""}]}', r"pairs\[0\].answer is empty"),
        ('{"pairs": [{"question": "Who?", "answer": "a\\u0000"}]}', "NUL"),
        ('{"pairs": [{"question": "Who?", "answer": "\\ud800"}]}', "not the JSON|surrogate"),
        (f'{{"pairs": [{PAIR}, {PAIR}]}}', "repeated a question .*Who"),
        (f'{{"pairs": [{PAIR}, {{"question": " who", "answer": "Bo"}}]}}', "repeated a question"),
        ('{"pairs": [{"question": "Where is it?", "answer": "Here"}]}', "repeated a question .*Where"),
        (json.dumps({"pairs": [{"question": f"{i}?", "answer": "a"} for i in range(3)]}), "it had 3 pairs"),
    ],
)
def test_pairs_that_cannot_be_used_are_named(text: str, reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=reason):
        parse_pairs(text, at_most=2, earlier=["where  is it"])


@pytest.mark.parametrize(
    ("paraphrases", "reason"),
    [
        ([], "it had 0 paraphrases, expected 2"),
        (["one"], "it had 1 paraphrases, expected 2"),
        (["one", "One. "], "repeated a paraphrase"),
        (["one", "THE  document"], "repeated a paraphrase"),
        (["one", "\n"], "only white space"),
    ],
)
def test_paraphrases_that_cannot_be_used_are_named(paraphrases: list[str], reason: str) -> None:
    with pytest.raises(MalformedAnswer, match=reason):
        parse_paraphrases(json.dumps({"paraphrases": paraphrases}), exactly=2, document="The document.")


def test_texts_lose_the_space_around_them() -> None:
    text = json.dumps({"paraphrases": [" one\n", "two"]})
    assert parse_paraphrases(text, exactly=2, document="d") == ["one", "two"]


def test_missing_facts_are_each_told_once_in_their_order() -> None:
    assert parse_missing('{"missing": []}') == []
    assert parse_missing('{"missing": ["B is 2.", "A is 1.", "b  is 2"]}') == ["B is 2.", "A is 1."]
    with pytest.raises(MalformedAnswer, match="missing"):
        parse_missing('{"missing": "nothing"}')
