"""How long the texts of a corpus are, by a sample of it."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from clara_dist.config.compress import default_overlap_tokens
from clara_dist.config.corpus import CorpusConfig
from clara_dist.data.corpus import CorpusUnit, plan_units, read_unit
from clara_dist.data.documents import Document, FieldMap
from clara_dist.errors import ConfigError
from clara_dist.planning.estimate import Lengths

_FRAME_TOKENS = 3  # <ENC>, bos, eos
_ROWS_PER_UNIT = 256
# Without a tokenizer.
_BYTES_PER_TOKEN = 4


def sample_lengths(
    corpus: CorpusConfig, n: int, *, doc_max_tokens: int, tokenizer: Path | None = None, seed: int = 0
) -> tuple[int, Lengths]:
    """Read a corpus for its size, and stretches of it for its lengths.

    Args:
        corpus: What is read, as `compress` takes it.
        n: Documents of the sample.
        doc_max_tokens: Longer texts become overlapping passages, as in compression.
        tokenizer: A ``tokenizer.json``; None counts a token for every four bytes.
        seed: Of the choice.

    Returns:
        Passages of the corpus (bad rows count as if they were good), and their lengths.

    Raises:
        ConfigError: There is no good document in the sample.
        DataError: The corpus cannot be read.
    """
    fields = FieldMap.from_config(corpus)
    units = plan_units(corpus.corpus, format=corpus.format, fields=fields, rows_per_unit=_ROWS_PER_UNIT)
    documents = list(itertools.islice(_documents(units, seed), n))
    if not documents:
        raise ConfigError("the corpus has no good document", got=", ".join(corpus.corpus))
    texts = [document.text for document in documents]
    sizes = [len(text.encode("utf-8", "surrogatepass")) for text in texts]
    if tokenizer is None:
        counts = [size / _BYTES_PER_TOKEN for size in sizes]
    else:
        from tokenizers import Tokenizer

        encodings = Tokenizer.from_file(str(tokenizer)).encode_batch(texts, add_special_tokens=False)
        counts = [len(encoding.ids) for encoding in encodings]
    read: Counter[float] = Counter()
    n_bytes = 0.0
    for document, size, count in zip(documents, sizes, counts, strict=True):
        passages = _passages(count, doc_max_tokens, default_overlap_tokens(doc_max_tokens))
        read.update(tokens + _FRAME_TOKENS for tokens in passages)
        beside = len(document.title) + len(document.doc_id) + len(str(document.metadata))
        n_bytes += size * sum(passages) / max(count, 1) + beside * len(passages)
    n_passages = read.total()
    shares = tuple((float(tokens), times / n_passages) for tokens, times in sorted(read.items()))
    n_rows = sum(unit.n_rows for unit in units)
    return round(n_rows * n_passages / len(documents)), Lengths(shares, n_bytes / n_passages)


def _passages(n_tokens: float, most: int, overlap: int) -> list[float]:
    """Tokens of the passages of a text; those of real ones are fewer where they end with a sentence."""
    n = max(1, math.ceil((n_tokens - overlap) / (most - overlap)))
    return [most] * (n - 1) + [n_tokens - (n - 1) * (most - overlap)]


def _documents(units: Sequence[CorpusUnit], seed: int) -> Iterator[Document]:
    """Documents of units in random order: stretches from all over the corpus, of which every part is read once."""
    for unit in random.Random(seed).sample(units, len(units)):
        yield from (item for item in read_unit(unit) if isinstance(item, Document))
