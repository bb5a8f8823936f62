from __future__ import annotations

from typing import Any

from clara_dist.config import StageConfig
from clara_dist.training.batches import plan_step


def stage(**fields: Any) -> StageConfig:
    return StageConfig.model_validate({"stage": "joint", "data": "d", "store": "s", "steps": 1, **fields})


def test_plans_depend_on_seed_and_step_alone() -> None:
    mixed = stage(top_k=5, candidates={"source": "mixed"})
    assert [plan_step(mixed, step) for step in range(50)] == [plan_step(mixed, step) for step in range(50)]
    assert [plan_step(mixed, step) for step in range(50)] != [
        plan_step(stage(top_k=5, seed=1), step) for step in range(50)
    ]


def test_every_number_of_slots_comes_up_and_the_corpus_in_its_share() -> None:
    plans = [
        plan_step(stage(top_k=3, candidates={"source": "mixed", "corpus_share": 0.25}), step) for step in range(3000)
    ]
    counts = [sum(plan.n_slots == k for plan in plans) for k in (1, 2, 3)]
    assert sum(counts) == 3000
    # Four standard deviations: 4 * sqrt(3000 * 2/9) = 103, 4 * sqrt(3000 * 3/16) = 95.
    assert all(abs(count - 1000) < 103 for count in counts)
    assert abs(sum(plan.from_corpus for plan in plans) - 750) < 95


def test_fixed_slots_and_fixed_sources() -> None:
    assert {plan_step(stage(top_k=3, random_slots=False), step).n_slots for step in range(20)} == {3}
    assert not any(plan_step(stage(), step).from_corpus for step in range(20))
    assert all(plan_step(stage(candidates={"source": "corpus"}), step).from_corpus for step in range(20))
