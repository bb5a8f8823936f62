"""How long the texts of a corpus are, by a sample of it."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clara_dist.data.corpus import CorpusUnit, plan_units, read_unit
from clara_dist.data.documents import Document
from clara_dist.errors import ConfigError
from clara_dist.planning.estimate import Lengths

_FRAME_TOKENS = 3  # <ENC>, bos, eos
_ROWS_PER_UNIT = 256
# Without a tokenizer.
_BYTES_PER_TOKEN = 4


def sample_lengths(
    corpus: Sequence[str], n: int, *, doc_max_tokens: int, tokenizer: Path | None = None, seed: int = 0
) -> tuple[int, Lengths]:
    """Read a corpus for its size, and stretches of it for its lengths.

    Args:
        corpus: Files, directories or patterns, as `compress` takes them.
        n: Documents of the sample.
        doc_max_tokens: Longer texts are cut there, as in compression.
        tokenizer: A ``tokenizer.json``; None counts a token for every four bytes.
        seed: Of the choice.

    Returns:
        Rows of the corpus (an upper bound of its documents), and the lengths.

    Raises:
        ConfigError: There is no good document in the sample.
        DataError: The corpus cannot be read.
    """
    units = plan_units(corpus, rows_per_unit=_ROWS_PER_UNIT)
    documents = list(itertools.islice(_documents(units, seed), n))
    if not documents:
        raise ConfigError("the corpus has no good document", got=list(corpus))
    texts = [document.text for document in documents]
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    if tokenizer is None:
        counts = [size / _BYTES_PER_TOKEN for size in sizes]
    else:
        from tokenizers import Tokenizer

        encodings = Tokenizer.from_file(str(tokenizer)).encode_batch(texts, add_special_tokens=False)
        counts = [len(encoding.ids) for encoding in encodings]
    read = Counter(min(count, doc_max_tokens) + _FRAME_TOKENS for count in counts)
    shares = tuple((float(tokens), times / len(documents)) for tokens, times in sorted(read.items()))
    extra = sum(len(document.title) + len(document.doc_id) + len(str(document.metadata)) for document in documents)
    return sum(unit.n_rows for unit in units), Lengths(shares, (sum(sizes) + extra) / len(documents))


def _documents(units: Sequence[CorpusUnit], seed: int) -> Iterator[Document]:
    """Documents of units in random order: stretches from all over the corpus, of which every part is read once."""
    for unit in random.Random(seed).sample(units, len(units)):
        yield from (item for item in read_unit(unit) if isinstance(item, Document))
