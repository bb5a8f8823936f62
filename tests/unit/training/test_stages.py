from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from clara_dist.training.stages import build_stage


def test_a_new_base_is_drawn_in_float32_whatever_its_config_names(
    make_config: Any, tmp_path: Path, tiny_base_dir: Path
) -> None:
    """The type that a published model is stored in would otherwise be that of its optimiser."""
    blank = tmp_path / "blank"
    blank.mkdir()
    for path in tiny_base_dir.glob("*.json"):
        (blank / path.name).write_bytes(path.read_bytes())
    settings = json.loads((blank / "config.json").read_text(encoding="utf-8"))
    (blank / "config.json").write_text(json.dumps(settings | {"dtype": "bfloat16"}), encoding="utf-8")
    config = make_config("scratch", stage="base", base_dir=str(blank))
    built = build_stage(config.stages[0], config.model, config.engine, torch.device("cpu"))
    assert {parameter.dtype for parameter in built.trainee.parameters.values()} == {torch.float32}
