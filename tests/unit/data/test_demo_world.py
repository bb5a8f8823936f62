from __future__ import annotations

import itertools
import random
import re
from collections import Counter

import bm25s
import pytest

from clara_dist.data.demo_language import CODAS, DECOYS, ONSETS, RELATIONS, WHO_QUESTION, as_sentence
from clara_dist.data.demo_tokenizer import UNK, make_tokenizer
from clara_dist.data.demo_world import (
    N_QUESTION_WORDINGS,
    N_WORDINGS,
    CandidateMaker,
    DemoWorld,
    PartnerMaker,
    Passage,
    Person,
    compound_answer,
    compound_question,
)
from clara_dist.errors import DataError

LITERAL = N_WORDINGS - 1
FUNCTION_WORDS = set(re.findall(r"\w+", "a the of in to is was does has that what which where name"))


@pytest.fixture(scope="module")
def world() -> DemoWorld:
    return DemoWorld(seed=7)


def content_words(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"\{\w+\}", "", text.lower()))) - FUNCTION_WORDS


def test_the_world_has_the_size_that_it_promises(world: DemoWorld) -> None:
    assert len({person.name for person in world.people}) == 560
    assert sum(person.held_out for person in world.people) == 80
    assert len({passage.doc_id for passage in world.passages}) == 4480
    assert (len(world.train_passages), len(world.held_out_passages)) == (3840, 640)
    assert not {p.person for p in world.train_passages} & {p.person for p in world.held_out_passages}
    facts = Counter((passage.person.name, passage.relation.noun) for passage in world.passages)
    assert set(facts.values()) == {1}
    assert {len(relation.values) for relation in RELATIONS} == {20}


def test_more_people_than_names_are_refused() -> None:
    with pytest.raises(DataError, match="961"):
        DemoWorld(seed=0, n_train=961, n_held_out=1)


def test_a_seed_is_a_world() -> None:
    small = [DemoWorld(seed, n_train=8, n_held_out=2).passages for seed in (0, 0, 1)]
    assert small[0] == small[1]
    assert small[0] != small[2]


def test_every_name_is_two_pieces_that_training_people_have_too(world: DemoWorld) -> None:
    tokenizer = make_tokenizer()
    for onset, coda in itertools.product(ONSETS, CODAS):
        assert tokenizer.encode(Person(onset, coda, False).name).tokens == [onset, f"##{coda}"]
    seen = {piece for p in world.people if not p.held_out for piece in (p.onset, p.coda)}
    assert seen == {*ONSETS, *CODAS}


def test_no_sentence_has_an_unknown_token_and_no_passage_is_longer_than_21(world: DemoWorld) -> None:
    tokenizer = make_tokenizer()
    person = world.people[0]
    lengths = []
    for relation, value in [(r, v) for r in RELATIONS for v in r.values]:
        one = Passage("", person, relation, value, 0, relation, "")
        sentences = [one.paraphrase(i) for i in range(N_WORDINGS)]
        with_decoy = [f"{s[:-1]}, {d.format(noun=r.noun)}." for s in sentences for d in DECOYS for r in RELATIONS]
        lengths += [len(encoding) for encoding in tokenizer.encode_batch(with_decoy)]
        questions = [one.question(i) for i in range(len(relation.questions))]
        for encoding in tokenizer.encode_batch([*with_decoy, *sentences, *questions, value, WHO_QUESTION]):
            assert UNK not in encoding.tokens
    assert max(lengths) <= 21
    assert {p.text for p in world.passages if UNK in tokenizer.encode(p.text).tokens} == set()


def test_four_wordings_avoid_the_words_of_the_questions_and_the_literal_one_has_them() -> None:
    for relation in RELATIONS:
        asked = content_words(" ".join(relation.questions))
        assert len(relation.wordings) == len(relation.questions) == len({*relation.questions}) == 4
        for wording in relation.wordings:
            assert not content_words(wording) & asked, wording
        assert relation.noun in content_words(relation.literal) & asked


def test_twins_share_their_values_and_no_person_has_one_value_twice(world: DemoWorld) -> None:
    pairs = list(zip(RELATIONS[::2], RELATIONS[1::2], strict=True))
    assert all(one.values == other.values for one, other in pairs)
    assert len({one.values for one, _ in pairs}) == 4
    value = {(p.person.name, p.relation.noun): p.value for p in world.passages}
    for person in world.people:
        for one, other in pairs:
            assert value[person.name, one.noun] != value[person.name, other.noun]


def test_decoys_name_another_relation_in_the_words_of_its_questions(world: DemoWorld) -> None:
    for passage in world.passages:
        assert passage.decoy is not passage.relation
        fact = as_sentence(passage.text.split(", ")[0])
        assert fact == passage.paraphrase(passage.wording)
        assert passage.value in fact
        named = {r.noun for r in RELATIONS if r.noun in content_words(passage.text)}
        assert named == {passage.decoy.noun} | ({passage.relation.noun} if passage.wording == LITERAL else set())
    assert all(sum(r.noun in q for q in r.questions) >= 2 for r in RELATIONS)
    shares = Counter(passage.wording for passage in world.passages)
    # 4,480 draws from five wordings: a standard deviation is 27.
    assert all(abs(shares[i] - 896) < 5 * 27 for i in range(N_WORDINGS))


def test_word_overlap_finds_the_person_and_misses_the_passage(world: DemoWorld) -> None:
    bm25 = bm25s.BM25()
    bm25.index(bm25s.tokenize([p.text for p in world.passages], show_progress=False), show_progress=False)
    asked = world.held_out_passages
    questions = bm25s.tokenize([p.question(i % 4) for i, p in enumerate(asked)], show_progress=False)
    found, _ = bm25.retrieve(questions, k=1, show_progress=False)
    best = [world.passages[row] for row in found[:, 0]]
    assert sum(b.person is p.person for b, p in zip(best, asked, strict=True)) / 640 > 0.9
    # One of a person's eight passages by chance: .125. The literal fifth lifts it, the decoys keep it low.
    assert sum(b is p for b, p in zip(best, asked, strict=True)) / 640 < 0.3


def test_candidates_are_gold_the_same_person_near_names_and_others(world: DemoWorld) -> None:
    maker = CandidateMaker(world.passages)
    for gold in world.held_out_passages[:50]:
        drawn = maker.draw((gold,), 20, random.Random(gold.doc_id))
        assert len({p.doc_id for p in drawn}) == 20
        assert gold in drawn
        same_person = [p for p in drawn if p.person is gold.person]
        assert len(same_person) == 8
        near = [
            p
            for p in drawn
            if p.person is not gold.person
            and p.relation is gold.relation
            and (p.person.onset == gold.person.onset or p.person.coda == gold.person.coda)
        ]
        assert len(near) >= 6
    places = Counter(maker.draw((gold,), 20, random.Random(i)).index(gold) for i, gold in enumerate(world.passages))
    # The place of the right document tells nothing: 224 at each of 20 places, a standard deviation is 15.
    assert all(abs(places[i] - 224) < 5 * 15 for i in range(20))
    with pytest.raises(DataError, match="more candidates"):
        CandidateMaker(world.passages[:8]).draw((world.passages[0],), 9, random.Random(0))


def test_a_partner_is_another_passage_about_the_person(world: DemoWorld) -> None:
    partners = PartnerMaker(world.held_out_passages)
    for gold in world.held_out_passages:
        first, second = partners.pair(gold, random.Random(gold.doc_id))
        assert first is gold
        assert second.person is gold.person
        assert second.relation is not gold.relation


def test_a_compound_question_asks_for_both_facts_in_order(world: DemoWorld) -> None:
    tokenizer = make_tokenizer()
    partners = PartnerMaker(world.train_passages)
    one, other = partners.pair(world.train_passages[0], random.Random(0))
    for wordings in itertools.product(range(N_QUESTION_WORDINGS), repeat=2):
        text = compound_question((one, other), wordings)
        first, second = text.split(", and ")
        assert one.question(wordings[0])[:-1] == first
        assert other.question(wordings[1])[1:] == second[1:]
        assert UNK not in tokenizer.encode(text).tokens
    assert compound_answer((one, other)) == f"{one.value} and {other.value}"
    assert compound_question((one,), [2]) == one.question(2)
    assert compound_answer((one,)) == one.value


def test_candidates_of_two_facts_hold_both_and_near_names(world: DemoWorld) -> None:
    maker, partners = CandidateMaker(world.passages), PartnerMaker(world.passages)
    for gold in world.held_out_passages[:50]:
        rng = random.Random(gold.doc_id)
        pair = partners.pair(gold, rng)
        drawn = maker.draw(pair, 20, rng)
        assert len({p.doc_id for p in drawn}) == 20
        assert set(pair) <= set(drawn)
        assert sum(p.person is gold.person for p in drawn) == 8
        near = [p for p in drawn if p.person is not gold.person and p.relation in {q.relation for q in pair}]
        assert len(near) >= 6
