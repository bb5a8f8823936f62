"""CLaRa on a Ray cluster: compression, joint training, retrieval and generation in one latent space."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clara_dist.inference.api import Clara

__version__ = "0.1.0"
__all__ = ["Clara", "__version__"]


def __getattr__(name: str) -> Any:
    # Not before it is asked for: `import clara_dist`, which every command does, must not load torch.
    if name == "Clara":
        from clara_dist.inference.api import Clara

        return Clara
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
