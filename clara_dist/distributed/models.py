"""The model of a job or of a server, loaded as its configuration says."""

from __future__ import annotations

from clara_dist.config.compress import CompressConfig
from clara_dist.config.evaluate import EvaluateConfig
from clara_dist.config.serve import ServeConfig
from clara_dist.model.clara import ClaraModel


def load_model(config: CompressConfig | EvaluateConfig | ServeConfig, device: str) -> ClaraModel:
    """Load ``config.model``.

    Raises:
        ModelError: It cannot be loaded.
    """
    return ClaraModel.from_pretrained(
        config.model,
        base_model=config.base_model,
        dtype=config.dtype,
        device=device,
        attn_implementation=config.attn_implementation,
        quantization=config.quantization,
    )
