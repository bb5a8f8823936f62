"""The demo's configuration in another directory and with another seed."""

from __future__ import annotations

from pathlib import Path

from clara_dist.data.demo_files import DemoSizes
from clara_dist.distributed import demo


def paths(tree: object) -> list[str]:
    if isinstance(tree, dict):
        return [path for value in tree.values() for path in paths(value)]
    if isinstance(tree, (list, tuple)):
        return [path for value in tree for path in paths(value)]
    return [tree] if isinstance(tree, str) and "/" in tree else []


def test_everything_moves_into_the_directory() -> None:
    config = demo.demo_config(Path("/tmp/else where"), seed=7)
    found = [path for path in paths(config.model_dump()) if path != "eval/loss"]  # a metric's name
    assert len(found) > 10
    assert all(Path(path).is_relative_to("/tmp/else where") for path in found)
    assert config.run_dir == "/tmp/else where"


def test_the_seed_reaches_every_stage() -> None:
    config = demo.demo_config(Path("x"), seed=7)
    assert [stage.seed for stage in (*config.prepare.stages, *config.joint.stages)] == [7, 7, 7, 7]


def test_a_relative_directory_stays_as_it_is_named() -> None:
    config = demo.demo_config(Path("demo-run"), seed=1)
    assert config.compress.corpus == ("demo-run/data/corpus.jsonl",)


def test_files_last_as_long_as_the_stages() -> None:
    assert demo.demo_sizes(demo.demo_config(Path("x"), seed=1)) == DemoSizes()


def test_held_out_people_are_not_candidates() -> None:
    config = demo.demo_config(Path("x"), seed=1)
    assert config.joint.stages[0].candidates.where == {"split": ("train",)}
    assert config.compress.metadata_columns["split"] == "string"


def test_the_multi_hop_variant_reads_two_documents_an_answer() -> None:
    config = demo.demo_config(Path("x"), seed=7, variant="multi-hop")
    (stage,) = config.joint.stages
    assert (stage.top_k, stage.random_slots, config.evaluate.top_k) == (2, False, 2)
    sizes = demo.demo_sizes(config, "multi-hop")
    assert (sizes.variant, sizes.base_steps) == ("multi-hop", config.prepare.stages[0].steps)
