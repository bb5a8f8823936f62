from __future__ import annotations

import pytest

from clara_dist.evaluation import normalized_words, score_answer


def test_normalisation():
    assert normalized_words("The  Cat's, a HAT!\nan Ápple (theatre)") == ["cats", "hat", "ápple", "theatre"]
    assert normalized_words("the") == []
    # T5's published test of its SQuAD normalisation: "_" is punctuation, the typographic quote is not.
    found = normalized_words("`Needs\tA_LOT of the 'normalization'.\"\u2018")
    assert found == ["needs", "alot", "of", "normalization\u2018"]
    # Punctuation goes before the articles do, as in SQuAD's script: "a.m." is the word "am", "U.S.A" is "usa".
    assert normalized_words("a.m. U.S.A") == ["am", "usa"]


@pytest.mark.parametrize(
    ("answer", "right", "expected"),
    [
        ("The Eiffel Tower.", ["eiffel tower"], (1.0, 1.0, 1.0)),
        # shared 2 of 3 and 2 of 2: 2 * 2 / (3 + 2)
        ("big Eiffel Tower", ["Eiffel Tower"], (0.0, 0.8, 1.0)),
        # shared 1 of 1 and 1 of 2
        ("tower", ["Eiffel Tower"], (0.0, 2 / 3, 0.0)),
        ("party", ["art"], (0.0, 0.0, 0.0)),
        ("Tower Eiffel", ["Eiffel Tower"], (0.0, 1.0, 0.0)),
        # each figure takes the spelling that fits best: "york" covers, "new york city" has F1 2 * 2 / (2 + 3)
        ("new york", ["york", "new york city"], (0.0, 0.8, 1.0)),
        # "x" is shared as often as both have it: min(3, 2) = 2 of 3 and of 2
        ("x x x", ["x x"], (0.0, 0.8, 1.0)),
        ("", ["Oslo"], (0.0, 0.0, 0.0)),
        ("Oslo", ["The"], (0.0, 0.0, 0.0)),
        ("the", ["a"], (1.0, 1.0, 1.0)),
    ],
)
def test_scores_by_hand(answer, right, expected):
    scores = score_answer(answer, right)
    assert (scores.exact_match, scores.f1, scores.cover_match) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "right", "exact_match", "f1"),
    [
        # The metric card of Hugging Face's wrapper of SQuAD's script: 66.67 and 66.67 over these three.
        ("1976", ["1976"], 1.0, 1.0),
        ("Beyonce", ["Beyoncé and Bruno Mars"], 0.0, 0.0),
        ("climate change", ["climate change"], 1.0, 1.0),
        # AllenNLP's test of its own
        ("this is the best span", ["this is a good span", "something irrelevant"], 0.0, 0.75),
    ],
)
def test_published_examples_of_squads_script(answer, right, exact_match, f1):
    scores = score_answer(answer, right)
    assert (scores.exact_match, scores.f1) == (exact_match, f1)
