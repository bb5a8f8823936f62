"""The model inside an engine replica: reasoner and generator on one copy of the base LLM. Knows nothing of Serve."""

from __future__ import annotations

import hashlib

import numpy as np
import torch

from clara_dist.config.http import LatentWord, Source
from clara_dist.config.serve import EngineKind, ServeConfig
from clara_dist.distributed.models import load_model
from clara_dist.errors import RequestError
from clara_dist.inference.answering import Source as StoredSource
from clara_dist.inference.engine import AnswerEngine
from clara_dist.inference.explain import Explanation, Word, explain
from clara_dist.inference.transformers_engine import TransformersEngine
from clara_dist.inference.vllm_engine import VllmEngine
from clara_dist.model.identity import hash_tensors
from clara_dist.store.fingerprint import Fingerprint

# Of each vector: as many as a line of the page takes.
_WORDS = 8
_ENGINES: dict[EngineKind, type[TransformersEngine] | type[VllmEngine]] = {
    "transformers": TransformersEngine,
    "vllm": VllmEngine,
}


class ServedModel:
    """A model that was loaded for serving, and the engine that runs it.

    Args:
        config: What is served.
        device: ``cpu`` or ``cuda``.

    Attributes:
        fingerprint: What a store must have been written by.
        engine: Reasons and answers.
        version: A hash over all that decides answers: the fingerprint and the two roles that serve.

    Raises:
        ModelError: The model cannot be loaded.
    """

    def __init__(self, config: ServeConfig, device: str) -> None:
        clara = load_model(config, device)
        self.fingerprint = Fingerprint(clara.fingerprint_fields())
        digest = hashlib.sha256(self.fingerprint.digest.encode())
        for role in ("query_reasoner", "generator"):
            digest.update(hash_tensors(clara.role_state(role)).encode())
        self.version = digest.hexdigest()[:12]
        clara.fuse_for_serving()
        self._clara = clara
        self._tokenizer = clara.tokenizer
        self._context_tokens: int | None = getattr(clara.base.config, "max_position_embeddings", None)
        self.engine: AnswerEngine = _ENGINES[config.engine](
            clara,
            max_rows=config.batch_size,
            max_batch_tokens=config.batch_tokens,
            threads=config.threads if device == "cpu" else None,
        )

    @property
    def gpu_memory_bytes(self) -> int:
        """What is taken of the model's GPU, by this process and others; 0 on a CPU."""
        if self._clara.device.type != "cuda":
            return 0
        free, total = torch.cuda.mem_get_info(self._clara.device)
        return total - free

    async def words(self, question: str, query_X: np.ndarray, source: Source) -> tuple[tuple[LatentWord, ...], ...]:
        """What each vector of a question decodes to, likeliest first, as `clara_dist.inference.explain` finds it."""

        def read() -> Explanation:
            query_1MD = torch.from_numpy(query_X).view(1, self._clara.n_memory_tokens, -1)
            known = StoredSource(source.doc_id, source.parent_id, source.title, source.score, source.text)
            return explain(self._clara, [question], query_1MD, [known], _WORDS)[0]

        explanation = await self.engine.run(read)
        return tuple(tuple(map(_latent_word, vector)) for vector in explanation.vectors)

    def require_readable(self, question: str) -> None:
        """Check that the reasoner reads all of a question.

        Raises:
            TokenizationError: It is too long.
        """
        self._tokenizer.encode_questions([question])

    def prompt(self, question: str, top_k: int, max_tokens: int) -> list[int]:
        """The generator's prompt, with room for the answer.

        Raises:
            TokenizationError: The prompt alone is too long.
            RequestError: Prompt and answer together are.
        """
        prompt = self._tokenizer.prompt(question, top_k)
        if self._context_tokens is not None and len(prompt) + max_tokens > self._context_tokens:
            raise RequestError(
                "prompt and answer exceed the model's context",
                got=f"{len(prompt)} prompt tokens and max_tokens {max_tokens}",
                expected=f"at most {self._context_tokens} together",
                hint="lower max_tokens or top_k",
            )
        return prompt


def _latent_word(word: Word) -> LatentWord:
    return LatentWord(text=word.text, probability=word.probability, is_word=word.is_word, added=word.is_added)
