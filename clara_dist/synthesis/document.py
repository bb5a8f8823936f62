"""One document's training rows: written, checked for what they leave out, completed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from clara_dist.config.synthesize import SynthesisConfig
from clara_dist.synthesis.client import ChatClient
from clara_dist.synthesis.usage import Usage


@dataclass(frozen=True)
class Synthesized:
    """What came of a document.

    Attributes:
        doc_id: The document's.
        rows: Training rows of stage ``compression``, as `clara_dist.data.examples` reads them; none of a failed one.
        missing: Key facts that pairs or a paraphrase still left out after the last round.
        rounds: Rounds of writing anew that it took, the most of pairs and of any paraphrase.
        usage: Of all its requests, those that came to nothing included.
        failure: Why the document has no rows; None for one that did not fail.
    """

    doc_id: str
    rows: tuple[dict[str, Any], ...]
    missing: tuple[str, ...]
    rounds: int
    usage: Usage
    failure: str | None = None


class Synthesizer:
    """Writes the rows of documents. Several may be under way at a time."""

    def __init__(self, config: SynthesisConfig, client: ChatClient) -> None:
        self._config = config
        self._client = client

    async def synthesize(self, doc_id: str, text: str) -> Synthesized:
        raise RuntimeError
