"""The API for people: one object that compresses, reasons, retrieves, answers and explains. No cluster."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from clara_dist.errors import DataError, ModelError, TokenizationError
from clara_dist.inference.answering import Answer, LocalPipeline, Source
from clara_dist.inference.building import build_store
from clara_dist.inference.compressor import DocumentCompressor
from clara_dist.inference.explain import Explanation, explain
from clara_dist.inference.reasoner import Reasoner
from clara_dist.model.clara import ClaraModel
from clara_dist.store.manifest import read_manifest
from clara_dist.store.reader import MemoryStore
from clara_dist.store.storage import open_storage
from clara_dist.store.where import Filter

Store = str | Path | MemoryStore
IndexUse = Literal["auto", "none", "required"]
_BRACKETS = "put it into brackets"
_FINGERPRINTED = ("compressor", "memory_embeddings")


class Clara(ClaraModel):
    """A CLaRa model with everything that can be asked of one.

    Roles are switched, never merged: one object does it all, also between training steps, and its numbers are those
    of the merged roles that jobs and the server run (to 1e-5 in float32). Calls run without dropout and without
    gradients, whatever mode the model is in, and leave the mode as it was. Not thread-safe.

    A store is a path, a URL, or an open `MemoryStore`. One that is named is opened once, and again when it has another
    version; one that this model did not write is refused by name of what differs.

    Shapes: S texts, B questions, K documents a question, M memory tokens, D the hidden size.
    """

    def compress(self, texts: Sequence[str], titles: Sequence[str] | None = None, *, truncate: bool = False) -> Tensor:
        """Memories of texts, one each, as a store keeps them.

        Args:
            texts: S documents.
            titles: Their titles, for models whose document template has a place for one.
            truncate: Read the beginning of a text that is longer than ``doc_max_tokens``; without it that is an error.
                `build_store` splits long documents instead.

        Returns:
            memory_SMD, float16 on the CPU, not normalised.

        Raises:
            TokenizationError: A text is too long.
            ModelError: A memory has a component beyond float16's range.
        """
        texts = _several(texts, "texts")
        titles = [""] * len(texts) if titles is None else titles
        if len(titles) != len(texts):
            raise ModelError("every text needs a title, or none", got=len(titles), expected=len(texts))
        with self._inference():
            compressor = DocumentCompressor(self, merge=False)
            encoded = compressor.tokenize(list(zip(titles, texts, strict=True)))
            long = [row for row, text in enumerate(encoded) if text.truncated]
            if long and not truncate:
                raise TokenizationError(
                    f"{len(long)} of {len(texts)} texts are longer than this model reads",
                    got=f"text {long[0]}: {texts[long[0]][:60]!r}...",
                    expected=f"at most {self.config.doc_max_tokens} tokens (doc_max_tokens)",
                    hint="split them, as build_store does, or pass truncate=True",
                )
            memory_SMD = np.empty((len(encoded), self.n_memory_tokens, self.hidden_size), np.float16)
            compressor.encode(encoded, memory_SMD)
        bad = np.flatnonzero(~np.isfinite(memory_SMD).all(axis=(1, 2)))
        if len(bad):
            raise ModelError(
                "memories that float16, the type of every store, cannot hold",
                got=f"{len(bad)} of {len(texts)}, first: text {bad[0]}, {texts[bad[0]][:60]!r}",
                expected="finite components of at most 65,504",
                hint="this model has diverged, or its base overflows in its dtype: try dtype='float32'",
            )
        return torch.from_numpy(memory_SMD)

    def reason(self, questions: Sequence[str]) -> Tensor:
        """Query vectors of questions, in the space of the memories.

        Returns:
            query_BMD, float32 on the CPU, not normalised. Documents are ranked by the cosine of the flattened vectors.

        Raises:
            TokenizationError: A question is longer than ``doc_max_tokens``.
        """
        with self._inference():
            query_BX = Reasoner(self).query(_several(questions, "questions"))
        return torch.from_numpy(query_BX).view(len(questions), self.n_memory_tokens, self.hidden_size)

    def retrieve(
        self,
        questions: Sequence[str],
        store: Store,
        top_k: int = 5,
        where: Filter | None = None,
        *,
        index: IndexUse = "auto",
    ) -> list[tuple[Source, ...]]:
        """The K nearest documents of each question, best first: B times K `Source`.

        Args:
            questions: B questions.
            store: Where to look.
            top_k: K.
            where: Only documents with such metadata: ``"source = 'wiki' and year >= 2020"``, or
                ``{"source": "wiki", "year": [2020, 2021]}``. The columns are those that the store was made with; the
                language is that of `clara_dist.store.expression`. Such a search is exact.
            index: ``auto``: by the index of ``clara-dist index build`` where the store's version has one; ``none``:
                exactly; ``required``.

        Raises:
            TokenizationError: A question is longer than ``doc_max_tokens``.
            FingerprintMismatchError: Another model wrote the store.
            RetrievalError: Fewer than K documents are left, or there is no index that is required.
            StoreError: There is no store.
            FilterError: ``where`` cannot be read, or does not fit the store's columns.
        """
        with self._inference():
            return self._pipeline(store).retrieve(_several(questions, "questions"), top_k, where, index)

    def answer(
        self,
        questions: Sequence[str],
        store: Store,
        top_k: int = 5,
        max_tokens: int = 64,
        *,
        temperature: float = 0.0,
        where: Filter | None = None,
        index: IndexUse = "auto",
    ) -> list[Answer]:
        """B answers, each generated from the memories of the question's K nearest documents.

        Args:
            questions: B questions.
            store: As `retrieve`, and so are ``top_k``, ``where``, ``index`` and the errors.
            top_k: K.
            max_tokens: Longest answer.
            temperature: 0 is greedy.
            where: As `retrieve`.
            index: As `retrieve`.
        """
        with self._inference():
            pipeline = self._pipeline(store)
            return pipeline.answer(_several(questions, "questions"), top_k, max_tokens, temperature, where, index)

    def explain(self, question: str, store: Store, *, n_words: int = 10, where: Filter | None = None) -> Explanation:
        """The words that a question's M query vectors decode to through the LM head.

        Marked are those that the nearest document has and the question has not. ``print`` shows it as a table.

        Args:
            question: One question.
            store: As `retrieve`, and so are ``where`` and the errors.
            n_words: Tokens per vector.
            where: As `retrieve`.
        """
        if not isinstance(question, str):
            raise ModelError("explain takes one question", got=type(question).__name__, expected="a string")
        query_1MD = self.reason([question])
        with self._inference():
            pipeline = self._pipeline(store)
            [[source]] = pipeline.sources(pipeline.search(query_1MD.flatten(1).numpy(), 1, where))
            return explain(self, [question], query_1MD, [source], n_words)[0]

    def build_store(
        self,
        documents: Iterable[str | Mapping[str, Any]],
        store: str | Path,
        *,
        metadata_columns: Mapping[str, str] | None = None,
        overlap_tokens: int = 32,
    ) -> MemoryStore:
        """Compress documents into a new memory store, here and now; ``clara-dist compress`` does it on a cluster.

        Args:
            documents: Texts, or mappings with ``text`` and perhaps ``doc_id``, ``title``, ``metadata``. A document
                without ``doc_id`` is named by its number, from 0 on.
            store: A path or URL where there is no store yet.
            metadata_columns: Metadata fields that ``where`` can ask for, each ``string``, ``int64``, ``float64`` or
                ``bool``.
            overlap_tokens: Documents longer than ``doc_max_tokens`` become passages that share this many tokens; they
                are rows ``DOC_ID#1``, ``#2``, ... with one ``parent_id``.

        Returns:
            The store, open.

        Raises:
            DataError: A document has no text or an unknown field, or there are none.
            StoreError: There is a store already, a ``doc_id`` comes twice, or metadata does not fit its column. The
                store is then not made.
        """
        if isinstance(documents, str | Mapping):
            raise DataError("documents must be a list", got=f"one document, {str(documents)[:60]!r}", hint=_BRACKETS)
        with self._inference():
            compressor = DocumentCompressor(self, merge=False)
            columns = metadata_columns or {}
            return build_store(compressor, documents, store, metadata_columns=columns, overlap_tokens=overlap_tokens)

    # --- what is open ---------------------------------------------------------------------------------------------

    @cached_property
    def _open_pipelines(self) -> dict[str, tuple[object, LocalPipeline]]:
        return {}

    def _pipeline(self, store: Store) -> LocalPipeline:
        if isinstance(store, MemoryStore):
            url, commit_id = store.url, store.manifest.commit_id
        else:
            storage = open_storage(store)
            # Not the version: a store that was deleted and made anew begins at 1 again.
            url, commit_id = storage.url, read_manifest(storage).commit_id
        # Training may go on between two calls: every write to what the fingerprint is made of changes the state.
        parameters = [p for name, p in self.named_parameters() if self.role_of(name) in _FINGERPRINTED]
        state = commit_id, *(parameter._version for parameter in parameters)
        # DeepSpeed writes where torch does not count.
        may_change = any(parameter.requires_grad for parameter in parameters)
        known, pipeline = self._open_pipelines.get(url, (None, None))
        if pipeline is None or known != state or may_change:
            pipeline = LocalPipeline(self, store if isinstance(store, MemoryStore) else MemoryStore.open(store))
            self._open_pipelines[url] = (state, pipeline)
        return pipeline

    @contextmanager
    def _inference(self) -> Iterator[None]:
        was_training = self.training
        self.eval()
        try:
            yield
        finally:
            self.train(was_training)


def _several(texts: Sequence[str], what: str) -> Sequence[str]:
    if isinstance(texts, str):
        raise ModelError(f"{what} must be a list", got=f"one string, {texts[:60]!r}", hint=_BRACKETS)
    return texts
