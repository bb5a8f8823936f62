"""Training data for the compression stage, written by a language model (arXiv 2511.18659). Imports no ray, no torch."""

from clara_dist.synthesis.client import ChatClient, Completion
from clara_dist.synthesis.document import Synthesized, Synthesizer
from clara_dist.synthesis.limiter import Limiter
from clara_dist.synthesis.timing import Timing
from clara_dist.synthesis.usage import Meter, Usage

__all__ = ["ChatClient", "Completion", "Limiter", "Meter", "Synthesized", "Synthesizer", "Timing", "Usage"]
