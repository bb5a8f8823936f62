"""The layout of the checkpoints published with the paper: reading it, and writing it.

Source: the published files (``config.json``, ``adapters.pth``, ``decoder_first_last_layers.pth``). No code of theirs is
run; ``torch.load`` reads tensors only.
"""

from clara_dist.model.apple.exporting import export_apple
from clara_dist.model.apple.importing import import_apple
from clara_dist.model.apple.report import Report, TensorPlace

__all__ = ["Report", "TensorPlace", "export_apple", "import_apple"]
