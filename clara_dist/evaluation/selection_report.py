"""What the swaps of many questions say: a table, JSON, and a verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from clara_dist.evaluation.swaps import Swaps

# A swap that changes the loss by less, in nats, has no sign worth counting: fp32 sums of other batches differ by 1e-6.
_NO_CHANGE = 1e-4
# Cosines of this size are told from chance.
_CLEAR = 0.3


@dataclass(frozen=True)
class SwapGroup:
    """Swaps of one kind.

    Attributes:
        slot: Counted from 1; None: of all slots.
        kind: What the slot held and what came in, such as ``gold -> outsider``.
        n: How many there were.
        true: Mean true change of the loss, in nats a token.
        linear: Mean linear estimate of it.
        right_signs: Share of the estimates with the right sign, of the swaps that change the loss by 1e-4 or more; None
            where none does.
    """

    slot: int | None
    kind: str
    n: int
    true: float
    linear: float
    right_signs: float | None


@dataclass(frozen=True)
class EstimatorScore:
    """How an estimator's gradient fits.

    Attributes:
        estimator: Its name.
        cosine: Mean over questions of the cosine with the exact gradient; None where all of them vanish.
        gold_down: Of the questions that read a gold document, the share whose update lowers its score; None where no
            question does.
    """

    estimator: str
    cosine: float | None
    gold_down: float | None


@dataclass(frozen=True)
class SelectionDiagnosis:
    """The report.

    Attributes:
        n_questions: Questions that were measured.
        n_candidates: Candidates a question, (fewest, most).
        top_k: Slots.
        temperature: tau of the estimators.
        gold_read: Share of the questions that have a gold document in a slot; None where gold is not known.
        swaps: By slot, then over all slots.
        estimators: The estimators.
    """

    n_questions: int
    n_candidates: tuple[int, int]
    top_k: int
    temperature: float
    gold_read: float | None
    swaps: tuple[SwapGroup, ...]
    estimators: tuple[EstimatorScore, ...]

    def group(self, kind: str, slot: int | None = None) -> SwapGroup | None:
        """One line of the table, if there is such a swap."""
        return next((group for group in self.swaps if (group.kind, group.slot) == (kind, slot)), None)

    def to_dict(self) -> dict[str, Any]:
        """Everything, fit for JSON."""
        return asdict(self) | {"verdict": self.verdict()}

    def table(self) -> str:
        """The tables and the verdict as plain text."""
        fewest, most = self.n_candidates
        each = f"{most}" if fewest == most else f"{fewest}-{most}"
        read = "" if self.gold_read is None else f"; {self.gold_read:.0%} of them read gold"
        lines = [
            f"{self.n_questions:,} questions, {each} candidates each, K = {self.top_k}, tau = {self.temperature:g}"
            + read,
            "",
            "slot  swap                       swaps   true change  linear estimate  right sign",
            "-" * 83,
        ]
        for g in self.swaps:
            slot = "all" if g.slot is None else str(g.slot)
            signs = _share(g.right_signs)
            lines.append(f"{slot:<6}{g.kind:<24}{g.n:>8,}{g.true:>+14.3f}{g.linear:>+17.3f}{signs:>12}")
        lines += ["", f"{'estimator':<16}{'cosine with the exact update':>30}{'lowers gold that is read':>28}"]
        lines.append("-" * 74)
        for e in self.estimators:
            cosine = "-" if e.cosine is None else f"{e.cosine:+.2f}"
            lines.append(f"{e.estimator:<16}{cosine:>30}{_share(e.gold_down):>28}")
        return "\n".join([*lines, "", *self.verdict()])

    def verdict(self) -> list[str]:
        """What follows for training, in sentences."""
        lines = [*_judgement("gold -> outsider", "the gold document that it reads itself", self)]
        lines += _judgement("outsider -> gold", "a gold document that it could read", self)
        known = [e for e in self.estimators if e.cosine is not None]
        if not known:
            return [*lines, "No estimator has a gradient here: one document is far ahead of all others (see tau)."]
        lines += [f"{e.estimator}: {_direction(e.cosine)}" for e in known if e.cosine is not None]
        best = max(known, key=lambda e: e.cosine or 0.0)
        if len(known) > 1 and (best.cosine or 0.0) > _CLEAR:
            lines.append(f"For K = {self.top_k} on this model and data, train with estimator={best.estimator}.")
        return lines


def summarize(measured: Sequence[Swaps], golds: Sequence[Tensor | None], *, temperature: float) -> SelectionDiagnosis:
    """The report on batches of questions.

    Args:
        measured: Their swaps, with one K.
        golds: For each batch bool ``[B, N]``, which candidates are gold; None where that is not known.
        temperature: tau of the estimators.
    """
    k = measured[0].indices_BK.shape[1]
    is_known = all(gold is not None for gold in golds)
    gold_BN = [
        torch.zeros_like(s.real_BN) if g is None or not is_known else g for s, g in zip(measured, golds, strict=True)
    ]
    held_gold_BK = torch.cat([g.gather(1, s.indices_BK) for s, g in zip(measured, gold_BN, strict=True)])
    n_candidates = torch.cat([s.real_BN.sum(1) for s in measured])
    return SelectionDiagnosis(
        n_questions=len(held_gold_BK),
        n_candidates=(int(n_candidates.min()), int(n_candidates.max())),
        top_k=k,
        temperature=temperature,
        gold_read=float(held_gold_BK.any(1).float().mean()) if is_known else None,
        swaps=tuple(_groups(measured, gold_BN, is_known)),
        estimators=tuple(_score(name, measured, gold_BN, is_known) for name in measured[0].gradients_BN),
    )


def _groups(measured: Sequence[Swaps], gold_BN: Sequence[Tensor], is_known: bool) -> list[SwapGroup]:
    parts = [_flat(swaps, gold) for swaps, gold in zip(measured, gold_BN, strict=True)]
    slot, held, coming, true, linear = (torch.cat(column) for column in zip(*parts, strict=True))
    names = {False: "outsider", True: "gold"}
    kinds = [(True, False), (False, True), (False, False), (True, True)] if is_known else [(False, False)]
    groups = []
    for number in (*range(measured[0].indices_BK.shape[1]), None):
        for holds, comes in kinds:
            chosen = (held == holds) & (coming == comes) & (True if number is None else slot == number)
            if not chosen.any():
                continue
            clear = chosen & (true.abs() >= _NO_CHANGE)
            signs = (true[clear].sign() == linear[clear].sign()).double()
            groups.append(
                SwapGroup(
                    slot=None if number is None else number + 1,
                    kind=f"{names[holds]} -> {names[comes]}" if is_known else "any -> any",
                    n=int(chosen.sum()),
                    true=float(true[chosen].mean()),
                    linear=float(linear[chosen].mean()),
                    right_signs=float(signs.mean()) if len(signs) else None,
                )
            )
    return groups


def _flat(swaps: Swaps, gold_BN: Tensor) -> tuple[Tensor, ...]:
    """(slot, what it held is gold, what comes is gold, true, linear) of every swap of a batch."""
    tried_BKN = swaps.real_BN[:, None].repeat(1, swaps.indices_BK.shape[1], 1)
    tried_BKN.scatter_(2, swaps.indices_BK[..., None], False)
    question, slot, candidate = tried_BKN.nonzero().unbind(1)
    held = gold_BN[question, swaps.indices_BK[question, slot]]
    return slot, held, gold_BN[question, candidate], swaps.true_BKN[tried_BKN], swaps.linear_BKN[tried_BKN]


def _score(name: Any, measured: Sequence[Swaps], gold_BN: Sequence[Tensor], is_known: bool) -> EstimatorScore:
    cosines, lowered = [], []
    for swaps, gold in zip(measured, gold_BN, strict=True):
        gradient_BN = swaps.gradients_BN[name]
        lengths_B = gradient_BN.norm(dim=1) * swaps.exact_BN.norm(dim=1)
        moves_B = lengths_B > 0
        cosines.append((gradient_BN * swaps.exact_BN).sum(1)[moves_B] / lengths_B[moves_B])
        read_BN = torch.zeros_like(gold).scatter(1, swaps.indices_BK, True) & gold
        lowered.append((gradient_BN * read_BN).sum(1)[read_BN.any(1)] > 0)
    cosine, down = torch.cat(cosines), torch.cat(lowered).double()
    return EstimatorScore(
        estimator=name,
        cosine=float(cosine.mean()) if len(cosine) else None,
        gold_down=float(down.mean()) if is_known and len(down) else None,
    )


def _judgement(kind: str, what: str, diagnosis: SelectionDiagnosis) -> list[str]:
    group = diagnosis.group(kind)
    if group is None or group.right_signs is None:
        return []
    verdict = "judges rightly" if group.right_signs > 0.5 else "misjudges"
    return [
        f"A slot {verdict} {what}: {kind} changes the loss by {group.true:+.2f}, the linear estimate says "
        f"{group.linear:+.2f} (right sign in {group.right_signs:.0%})."
    ]


def _direction(cosine: float) -> str:
    if cosine > _CLEAR:
        return f"its update points where the loss falls (cosine {cosine:+.2f} with the exact one)."
    if cosine < -_CLEAR:
        return f"its update points AWAY from where the loss falls (cosine {cosine:+.2f}): it would undo retrieval."
    return f"its update has little to do with the loss (cosine {cosine:+.2f} with the exact one)."


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"
