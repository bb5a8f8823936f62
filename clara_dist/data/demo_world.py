"""The demo world: invented people, what is known about them, passages that say so, and questions.

Everything is a pure function of the seed. Only `random.Random.random` is drawn from: it is the one method whose
sequence Python promises to keep between versions.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from clara_dist.data.demo_language import CODAS, DECOYS, ONSETS, RELATIONS, Relation, as_sentence
from clara_dist.errors import DataError

T = TypeVar("T")


def shuffled(rng: random.Random, items: Sequence[T]) -> list[T]:
    """The items in random order."""
    return sorted(items, key=lambda _: rng.random())


def pick(rng: random.Random, items: Sequence[T]) -> T:
    """One of the items."""
    return items[int(rng.random() * len(items))]


@dataclass(frozen=True)
class Person:
    """An invented person; ``held_out`` ones are in the corpus and in the evaluation, and in no training row."""

    onset: str
    coda: str
    held_out: bool

    @property
    def name(self) -> str:
        return (self.onset + self.coda).capitalize()


@dataclass(frozen=True)
class Passage:
    """One document of the corpus: one fact about one person, and a decoy clause.

    Attributes:
        doc_id: ``person-relation``.
        relation: What the passage is about.
        value: The answer to every question about this person and relation.
        wording: Which of the relation's wordings it uses; the last one is the literal wording.
        decoy: The relation that the decoy clause names without saying anything about it.
    """

    doc_id: str
    person: Person
    relation: Relation
    value: str
    wording: int
    decoy: Relation
    text: str

    def paraphrase(self, wording: int) -> str:
        """The fact in another wording, without the decoy."""
        return as_sentence(_clause(self.person, self.relation, self.value, wording))

    def question(self, wording: int) -> str:
        return self.relation.questions[wording].format(person=self.person.name)


N_WORDINGS = len(RELATIONS[0].wordings) + 1
N_QUESTION_WORDINGS = len(RELATIONS[0].questions)


def _clause(person: Person, relation: Relation, value: str, wording: int) -> str:
    template = (*relation.wordings, relation.literal)[wording]
    return template.format(person=person.name, value=value)


class DemoWorld:
    """The world of one seed.

    Args:
        seed: Decides who lives in it, what is known about them and how it is said.
        n_train: People that training may know.
        n_held_out: People that appear in the corpus and in the evaluation questions, and in no training row.

    Attributes:
        people: All of them, in random order.
        passages: The corpus, one passage per person and relation, in random order.
        train_passages: Those about people that training may know.
        held_out_passages: The others.

    Raises:
        DataError: There are not as many names.
    """

    def __init__(self, seed: int, n_train: int = 480, n_held_out: int = 80) -> None:
        rng = random.Random(f"people {seed}")
        names = shuffled(rng, [(onset, coda) for onset in ONSETS for coda in CODAS])
        if n_train + n_held_out > len(names):
            raise DataError("the demo world has too few names", got=n_train + n_held_out, expected=f"<= {len(names)}")
        self.people = tuple(
            Person(*name, held_out=i < n_held_out) for i, name in enumerate(names[: n_train + n_held_out])
        )
        rng = random.Random(f"facts {seed}")
        passages = [passage for person in self.people for passage in _passages_about(person, rng)]
        self.passages = tuple(shuffled(rng, passages))
        self.train_passages = tuple(p for p in self.passages if not p.person.held_out)
        self.held_out_passages = tuple(p for p in self.passages if p.person.held_out)


def _passages_about(person: Person, rng: random.Random) -> list[Passage]:
    values: list[str] = []
    for twin in RELATIONS[::2]:
        # Twins never share a value, so an answer tells which of the two passages it was read from.
        values += shuffled(rng, twin.values)[:2]
    passages = []
    for relation, value in zip(RELATIONS, values, strict=True):
        wording = int(rng.random() * N_WORDINGS)
        decoy = pick(rng, [other for other in RELATIONS if other is not relation])
        clause = f"{_clause(person, relation, value, wording)}, {pick(rng, DECOYS).format(noun=decoy.noun)}"
        doc_id = f"{person.name.lower()}-{relation.noun}"
        passages.append(Passage(doc_id, person, relation, value, wording, decoy, as_sentence(clause)))
    return passages


Golds = tuple[Passage, ...]


def compound_question(golds: Golds, wordings: Sequence[int]) -> str:
    """One question that asks for every passage's fact, in order: "Where does Narbim live, and which pet ... keep?"."""
    first, *others = (gold.question(wording) for gold, wording in zip(golds, wordings, strict=True))
    parts = [first, *(f"{question[0].lower()}{question[1:]}" for question in others)]
    return ", and ".join([*(part[:-1] for part in parts[:-1]), parts[-1]])


def compound_answer(golds: Golds) -> str:
    """The answer to `compound_question`: the values in the order of the question."""
    return " and ".join(gold.value for gold in golds)


class PartnerMaker:
    """Gives a passage the second passage of a two-fact question: another one about the same person.

    Two people in one question (one relation of both) are beyond so small a model: given both passages, it gave both
    values to 26 % of such questions, and to 89 % of those about one person.

    Args:
        passages: What partners are drawn from: at least two about each person.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._by_person: dict[str, list[Passage]] = {}
        for passage in passages:
            self._by_person.setdefault(passage.person.name, []).append(passage)

    def pair(self, gold: Passage, rng: random.Random) -> Golds:
        """The passage, and another one about its person."""
        return gold, pick(rng, [p for p in self._by_person[gold.person.name] if p is not gold])


class CandidateMaker:
    """Draws the candidate documents of a question; neither the name alone nor the relation alone finds the right one.

    Args:
        passages: What candidates are drawn from.
    """

    def __init__(self, passages: Sequence[Passage]) -> None:
        self._passages = passages
        self._by_person: dict[str, list[Passage]] = {}
        self._by_piece: dict[tuple[str, str], list[Passage]] = {}
        for passage in passages:
            self._by_person.setdefault(passage.person.name, []).append(passage)
            for piece in (passage.person.onset, passage.person.coda):
                self._by_piece.setdefault((piece, passage.relation.noun), []).append(passage)

    def others_of_person(self, gold: Passage) -> list[Passage]:
        return [p for p in self._by_person[gold.person.name] if p is not gold]

    def near_names(self, gold: Passage) -> list[Passage]:
        """Passages on the same relation, about people who share an onset or a coda with the gold passage's person."""
        pieces = (gold.person.onset, gold.person.coda)
        return [p for piece in pieces for p in self._by_piece[piece, gold.relation.noun] if p is not gold]

    def draw(self, golds: Golds, n: int, rng: random.Random) -> list[Passage]:
        """The golds, their people's other passages, near names (up to half of the rest) and random ones.

        Returns:
            n distinct passages, shuffled; where n is small, a share of the people's passages.

        Raises:
            DataError: There are fewer than n passages.
        """
        if n > len(self._passages):
            raise DataError("more candidates than passages", got=n, expected=f"<= {len(self._passages)}")
        chosen = list(dict.fromkeys([*golds, *(p for gold in golds for p in self.others_of_person(gold))]))[:n]
        near = [p for gold in golds for p in self.near_names(gold) if p not in golds]
        chosen += shuffled(rng, near)[: (n - len(chosen)) // 2]
        chosen = list(dict.fromkeys(chosen))
        taken = {p.doc_id for p in chosen}
        while len(chosen) < n:
            passage = pick(rng, self._passages)
            if passage.doc_id not in taken:
                taken.add(passage.doc_id)
                chosen.append(passage)
        return shuffled(rng, chosen)
