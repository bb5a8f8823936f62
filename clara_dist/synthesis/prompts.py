"""What the writer is asked.

Every prompt begins with the document, so that an endpoint with a prefix cache reads a document once for all of its
prompts. All of it is one message of role ``user``: some chat templates know no other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_DOCUMENT = """\
<document>
{document}
</document>

"""

_JSON_ONLY = "Answer with nothing but one JSON object of this form, without any text before or behind it:\n"

_PAIRS = _JSON_ONLY + '{"pairs": [{"question": "...", "answer": "..."}, ...]}'

SIMPLE = (
    _DOCUMENT
    + """\
Write simple question-answer pairs about the document above: at most {n}, fewer if it has fewer facts.

- Each pair is about exactly one fact that the document states: a name, a date, a place, a number, a definition, a \
property, a relation between two things.
- Take the most important facts first, and no fact twice. Together the pairs should cover all the key facts.
- A question must be understood without the document. Name people, places, works and events; never write "the \
document", "the text", "the author", or a pronoun for something that the question does not name.
- A question must have one answer only. Never put the answer into it.
- An answer is short, complete, and taken from the document alone: add nothing that you know from elsewhere.
- Write in the language of the document.

"""
    + _PAIRS
)

COMPLEX = (
    _DOCUMENT
    + """\
Write complex question-answer pairs about the document above: at most {n}, fewer if it does not have enough facts to \
join.

- Each question can only be answered by joining at least two facts that the document states in different places: by \
following a relation from one thing to the next, by comparing, ordering in time, counting, or naming cause and effect.
- Never join two questions that could be asked apart by an "and".
- Use different facts for different pairs. Together the pairs should cover the key facts and how they belong together.
- A question must be understood without the document. Name people, places, works and events, unless finding out who or \
what is meant is a part of the question; never write "the document", "the text" or "the author".
- A question must have one answer only. Never put the answer into it.
- An answer is complete and rests on the document alone: add nothing that you know from elsewhere. Say in it how the \
facts lead to it, in one or two sentences.
- Write in the language of the document.

"""
    + _PAIRS
)

PARAPHRASE = (
    _DOCUMENT
    + """\
Write exactly {n} paraphrase(s) of the document above.

- A paraphrase states every fact of the document: all names, dates, places, numbers, conditions and relations. It adds \
none, and leaves none out.
- Change the wording, the structure of the sentences and, where the meaning allows, their order. Never copy a whole \
sentence. Names, numbers and fixed terms stay as they are.
- It is about as long as the document, and reads as a text of its own: no title, no list of facts, no word about the \
document itself.
- Several paraphrases must differ from each other.
- Write in the language of the document.

"""
    + _JSON_ONLY
    + '{"paraphrases": ["...", ...]}'
)

CHECK = (
    _DOCUMENT
    + """\
Somebody who cannot see the document above has to learn its content from the following material alone:

<material>
{material}
</material>

List the key facts of the document that the material leaves out.

- A key fact is one that a reader would miss: who, what, when, where, how many, why, and how things are related. \
Leave out trifles, and whatever only says how the document is written.
- A fact counts as covered if the material states it or makes it follow, in whatever words.
- A fact that the material states wrongly is not covered.
- Write each fact that is left out as one short sentence which can be understood by itself.
- If nothing is left out, the list is empty.

"""
    + _JSON_ONLY
    + '{"missing": ["...", ...]}'
)

_MISSING_PAIRS = """\


Other pairs on this document exist already. They ask:
{questions}

They leave out the following facts. Write pairs for these facts, and only for these; repeat no question from above:
{facts}"""

_MISSING_PARAPHRASE = """\


This is an earlier paraphrase of the document:

<paraphrase>
{paraphrase}
</paraphrase>

It leaves out the following facts, or states them wrongly. Write it anew, with these facts and everything that it has:
{facts}"""

_AGAIN = """\


You were asked this before, and your answer could not be used: {reason}. Answer again, and avoid that."""


def fill(prompt: str, **values: object) -> str:
    """A prompt with its ``{names}`` filled; other braces stay, those in the values, too."""
    names = "|".join(map(re.escape, values))
    return re.sub(r"\{(" + names + r")\}", lambda match: str(values[match[1]]), prompt)


def for_missing_pairs(prompt: str, questions: Sequence[str], facts: Sequence[str]) -> str:
    """A filled prompt for pairs, turned to the facts that the pairs so far leave out."""
    return prompt + fill(_MISSING_PAIRS, questions=_listed(questions), facts=_listed(facts))


def for_missing_in_paraphrase(prompt: str, paraphrase: str, facts: Sequence[str]) -> str:
    """A filled prompt for one paraphrase, turned to the facts that an earlier one leaves out."""
    return prompt + fill(_MISSING_PARAPHRASE, paraphrase=paraphrase, facts=_listed(facts))


def asked_again(prompt: str, reason: str) -> str:
    """A filled prompt, with what was wrong with the answer before."""
    return prompt + fill(_AGAIN, reason=reason)


def _listed(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)
