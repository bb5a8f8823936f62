"""Alarms on what no curve shows in time: a role that is not being trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping

from clara_dist.errors import TrainingError

# A norm so far below the largest that the stage has seen teaches nothing; so many reports in a row are no accident.
_VANISHED, _REPORTS = 1e-4, 10
# The gradient of a choice vanishes rightly when it is right: from this recall on, nothing is left to be taught.
_LEARNT = 0.95


class GradientAlarm:
    """Watches the gradient norms of the roles.

    A role without any gradient in a stage's first step cannot be trained as configured: an error. Later it is said once
    per role. The reasoner's gradient goes through softmax(s / tau) and shrinks as one document gets ahead; that is no
    alarm where it is the right one (recall of 0.95 or more).

    Args:
        stage: The stage's key.
        say: Gets the warnings.
        temperature: tau of the joint stage.
        untaught: Roles that are not to get a gradient, as in an ablation.
    """

    def __init__(
        self, stage: str, say: Callable[[str], None], temperature: float, untaught: frozenset[str] = frozenset()
    ) -> None:
        self._untaught = untaught
        self._stage = stage
        self._say = say
        self._temperature = temperature
        self._said: set[str] = set()
        self._largest: dict[str, float] = {}
        self._small: Counter[str] = Counter()

    def check(self, step: int, norms: Mapping[str, float], metrics: Mapping[str, float]) -> None:
        """Look at one report.

        Args:
            step: Optimiser steps done.
            norms: Gradient norm by role.
            metrics: Of the report.

        Raises:
            TrainingError: No gradient reaches a role in the stage's first step.
        """
        norms = {role: norm for role, norm in norms.items() if role not in self._untaught}
        dead = [role for role, norm in norms.items() if norm == 0.0]
        if dead and step == 1:
            raise TrainingError(
                f"stage {self._stage}: no gradient reaches {', '.join(dead)}",
                got=self._why(metrics),
                hint="with a single candidate, or with one far ahead of the others, the choice teaches nothing",
            )
        recalls = [value for name, value in metrics.items() if name.startswith("recall@")]
        for role, norm in norms.items():
            if not math.isfinite(norm):
                self._warn(role, f"is not finite at step {step}", metrics)
                continue
            self._largest[role] = max(norm, self._largest.get(role, 0.0))
            learnt = role == "query_reasoner" and bool(recalls) and recalls[0] >= _LEARNT
            is_small = norm <= _VANISHED * self._largest[role] and not learnt
            self._small[role] = self._small[role] + 1 if is_small else 0
            if norm == 0.0 and is_small:
                self._warn(role, f"is exactly zero at step {step}", metrics)
            elif self._small[role] >= _REPORTS:
                share = norm / self._largest[role]
                self._warn(role, f"has all but vanished for {_REPORTS} reports ({share:.0e} of its largest)", metrics)

    def _warn(self, role: str, what: str, metrics: Mapping[str, float]) -> None:
        if role not in self._said:
            self._said.add(role)
            why = f": {self._why(metrics)}" if role == "query_reasoner" else ""
            self._say(f"WARNING stage {self._stage}: the gradient of {role} {what}{why}")

    def _why(self, metrics: Mapping[str, float]) -> str | None:
        """What the choice is like, where there is one."""
        if "candidates" not in metrics:
            return None
        parts = [f"{metrics['candidates']:.3g} candidates a question"]
        if "score_margin" in metrics:
            parts.append(f"the best {metrics['score_margin']:.2g} ahead at tau {self._temperature:g}")
        parts += [f"{name} {value:.2f}" for name, value in metrics.items() if name.startswith("recall@")]
        return ", ".join(parts)
