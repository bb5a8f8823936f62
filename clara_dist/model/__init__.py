"""The base LLM with its three LoRA roles, its memory tokens and its prompts."""

from clara_dist.model.batch import Encoded, PromptBatch, TextBatch
from clara_dist.model.clara import ClaraModel
from clara_dist.model.tokens import ClaraTokenizer, EncodedText, TokenizedPrompt

__all__ = ["ClaraModel", "ClaraTokenizer", "Encoded", "EncodedText", "PromptBatch", "TextBatch", "TokenizedPrompt"]
