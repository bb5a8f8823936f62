"""What a synthesis will about cost, before anything is asked."""

from __future__ import annotations

from dataclasses import dataclass

from clara_dist.config.synthesize import SynthesisConfig
from clara_dist.synthesis import prompts

# Of English text in vocabularies of 32,000 and more.
_CHARS_PER_TOKEN = 4
_PAIR_TOKENS = 40
_CHECK_TOKENS = 60


@dataclass(frozen=True)
class Estimate:
    """Requests and tokens; ``a + b`` adds them up."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: Estimate) -> Estimate:
        return Estimate(
            self.requests + other.requests,
            self.prompt_tokens + other.prompt_tokens,
            self.completion_tokens + other.completion_tokens,
        )


def estimate(config: SynthesisConfig, n_chars: int, *, rounds: int) -> Estimate:
    """Estimate one document: 4 characters a token, 40 tokens a pair, paraphrases as long as the document.

    Neither retries nor answers that must be asked for again are counted.

    Args:
        config: What is written.
        n_chars: Length of the document.
        rounds: Rounds of writing anew that pairs and each paraphrase take: 0 is the least, ``max_rounds`` the most.
    """
    document = n_chars // _CHARS_PER_TOKEN
    n_pairs = config.n_simple + config.n_complex
    total = Estimate()
    simple, complex_ = config.simple_prompt or prompts.SIMPLE, config.complex_prompt or prompts.COMPLEX
    for prompt, n in ((simple, config.n_simple), (complex_, config.n_complex)):
        if n:
            total += Estimate(1, document + _tokens(prompt), n * _PAIR_TOKENS)
    check = document + _tokens(config.check_prompt or prompts.CHECK)
    if n_pairs:
        checked = Estimate(1, check + n_pairs * _PAIR_TOKENS, _CHECK_TOKENS)
        # A round asks for few pairs, with the questions that there are.
        again = Estimate(1, document + _tokens(simple) + n_pairs * _PAIR_TOKENS, 2 * _PAIR_TOKENS)
        total += _repeated(checked, 1 + rounds) + _repeated(again, rounds)
    if config.n_paraphrases:
        prompt_tokens = document + _tokens(config.paraphrase_prompt or prompts.PARAPHRASE)
        checked = Estimate(1, check + document, _CHECK_TOKENS)
        again = Estimate(1, prompt_tokens + document, document)
        total += Estimate(1, prompt_tokens, config.n_paraphrases * document)
        total += _repeated(checked, config.n_paraphrases * (1 + rounds))
        total += _repeated(again, config.n_paraphrases * rounds)
    return total


def _tokens(prompt: str) -> int:
    return len(prompt) // _CHARS_PER_TOKEN


def _repeated(one: Estimate, times: int) -> Estimate:
    return Estimate(one.requests * times, one.prompt_tokens * times, one.completion_tokens * times)
