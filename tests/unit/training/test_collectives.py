from __future__ import annotations

import pytest
import torch

from clara_dist.errors import TrainingError
from clara_dist.training.collectives import current_group


def test_a_gpu_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert current_group().device.type == "cpu"
    with pytest.raises(TrainingError, match="sees no GPU"):
        current_group(use_gpu=True)
