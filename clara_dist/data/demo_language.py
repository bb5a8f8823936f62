"""The words and sentences of the demo world: name pieces, values, and eight relations with their wordings.

Chosen so that retrieval by meaning is needed and possible:

- A name is an onset and a coda, two word pieces, so the name of a person never seen is made of pieces that were.
- Relations come in twin pairs with one list of values, so the type of the answer does not give the relation away.
- Four of a relation's five wordings share no content word with its questions; the fifth is literal.
- A passage ends in a clause that names ANOTHER relation in the questions' words, so that word overlap misleads.
"""

from __future__ import annotations

import re
from dataclasses import dataclass


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


ONSETS = _words(
    "bar bel ber dal dor fel gar gil hal jor kal ker kil lan lor mar mel mir nar nel nor pal per ral ros sal sel tal "
    "tor val zan"
)
CODAS = _words(
    "bim bok dak dov dun fas fen gol gus hek jit kam kov lig lup mak mez nid nok pim pov ruk ruz sev sib tov tuk vex "
    "vin zal zom"
)

CITIES = _words(
    "Athens Berlin Bogota Cairo Dakar Delhi Dublin Geneva Havana Kyoto Lagos Lima Lisbon London Madrid Nairobi Oslo "
    "Paris Prague Quito"
)
ANIMALS = _words(
    "bat bear beetle camel cat cow crab crow dog duck fox frog goat goose horse lizard mouse parrot rabbit snake"
)
FOODS = _words(
    "apples beans beets bread butter cabbage cake carrots cheese cherries fish garlic honey kale lemons lentils "
    "noodles olives rice soup"
)
COLOURS = _words(
    "amber beige black blue brown copper cream crimson gold green grey indigo ivory orange pink purple red silver "
    "white yellow"
)


@dataclass(frozen=True)
class Relation:
    """One thing that is known about every person.

    Attributes:
        noun: Its name, and what the questions, the literal wording and the decoy clauses call it.
        values: The values that it can take, shared with its twin.
        wordings: Passages that avoid the questions' content words.
        literal: The passage in the questions' own words.
        questions: Ways to ask for it.
    """

    noun: str
    values: tuple[str, ...]
    wordings: tuple[str, ...]
    literal: str
    questions: tuple[str, ...]


def _relation(
    noun: str, values: tuple[str, ...], verb_question: str, other_question: str, *wordings: str, article: str = ""
) -> Relation:
    return Relation(
        noun=noun,
        values=values,
        wordings=wordings,
        literal=f"the {noun} of {{person}} is {article}{{value}}",
        questions=(
            verb_question,
            f"What is the {noun} of {{person}}?",
            other_question,
            f"Name the {noun} of {{person}}.",
        ),
    )


# Twins stand side by side: 2 i and 2 i + 1.
RELATIONS: tuple[Relation, ...] = (
    _relation(
        "birthplace",
        CITIES,
        "Where was {person} born?",
        "In which city was {person} born?",
        "{person} first saw daylight over {value}",
        "the cradle of {person} stood at {value}",
        "{person} came into the world near {value}",
        "{value} heard the first cry of {person}",
    ),
    _relation(
        "home",
        CITIES,
        "Where does {person} live?",
        "In which city does {person} live?",
        "{person} pays rent to a landlord from {value}",
        "the postman of {value} brings the letters for {person}",
        "{person} has settled down at {value}",
        "{value} is where {person} sleeps every night",
    ),
    _relation(
        "pet",
        ANIMALS,
        "Which pet does {person} keep?",
        "Which animal does {person} keep?",
        "{person} feeds a {value} every morning",
        "a {value} waits at the gate for {person}",
        "{person} takes a {value} for walks",
        "a {value} naps on the lap of {person}",
        article="a ",
    ),
    _relation(
        "fear",
        ANIMALS,
        "Which animal does {person} fear?",
        "What does {person} fear most?",
        "{person} trembles at the sight of a {value}",
        "a {value} makes {person} turn pale",
        "{person} runs away from every {value}",
        "{person} screams when a {value} comes near",
        article="a ",
    ),
    _relation(
        "favourite",
        FOODS,
        "Which food does {person} love?",
        "What does {person} love to eat?",
        "{person} would walk miles for {value}",
        "{person} orders {value} at every meal",
        "a plate of {value} makes {person} smile",
        "{person} never gets enough {value}",
    ),
    _relation(
        "aversion",
        FOODS,
        "Which food does {person} hate?",
        "What does {person} hate to eat?",
        "{person} pushes {value} off the plate",
        "the smell of {value} makes {person} ill",
        "{person} gives all {value} away",
        "{person} refuses every bite of {value}",
    ),
    _relation(
        "coat",
        COLOURS,
        "Which colour has the coat of {person}?",
        "What colour is the coat that {person} owns?",
        "{person} goes out dressed in {value}",
        "the tailor sewed something {value} for {person}",
        "in winter {person} wraps up in {value}",
        "{person} wears {value} against the rain",
    ),
    _relation(
        "door",
        COLOURS,
        "Which colour has the door of {person}?",
        "What colour is the door that {person} owns?",
        "{person} painted the entrance {value}",
        "guests of {person} knock on {value} wood",
        "the way in to {person} gleams {value}",
        "{person} turns the key under a {value} arch",
    ),
)

DECOYS = (
    "and gossip is about the {noun}",
    "but rumours concern the {noun}",
    "while letters mention the {noun}",
    "though neighbours discuss the {noun}",
)

WHO_QUESTION = "Who is it about?"


def as_sentence(clause: str) -> str:
    """A clause with a capital and a full stop."""
    return clause[0].upper() + clause[1:] + "."


def words() -> list[str]:
    """Every lower-case word and sign that the world's sentences use, name pieces aside; sorted."""
    sentences = [WHO_QUESTION, ".,", *DECOYS]
    for relation in RELATIONS:
        sentences += [relation.noun, relation.literal, *relation.wordings, *relation.questions, *relation.values]
    text = re.sub(r"\{\w+\}", " ", " ".join(sentences)).lower()
    return sorted(set(re.findall(r"\w+|[^\w\s]", text)))
