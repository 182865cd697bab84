"""The trainings of the learning benchmark: which there are, and the settings of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from typing import Any

from benchmarks.learning.arms import (
    ARMS,
    BASELINE,
    BY_NAME,
    PRETEXTS,
    Arm,
    Budget,
    finetune_settings,
    pretrain_settings,
)
from benchmarks.learning.sets import MOTION
from dynamonet.settings import flatten
from dynamonet.training.settings import TrainSettings
from finetune.settings import FinetuneSettings
from pretrain.settings import PretrainSettings

PRETRAIN, TUNE, TEST, CURVE = "pretrain", "tune", "test", "curve"
VAL_SHARE = 0.33  # of the training folds, by which rates are chosen


@dataclass(frozen=True)
class Row:
    """One training. `arm` is a pretext's name in a pretraining."""

    kind: str
    arm: str
    set: str  # in a pretraining: pool, or the rendered set
    fold: int
    seed: int = 0  # of the pretraining
    repeat: int = 0  # of the fine-tuning
    rate: int | None = None  # tune: place among the arm's
    share: float = 1.0  # of the labels

    @property
    def key(self) -> str:
        return " ".join(f"{name}={value}" for name, value in asdict(self).items())

    @property
    def pretraining(self) -> Row | None:
        """The row that a fine-tuning starts from."""
        if self.kind == PRETRAIN or not (pretext := BY_NAME[self.arm].pretext):
            return None
        return Row(
            PRETRAIN, pretext, MOTION if self.set == MOTION else "pool", self.fold, self.seed
        )


def plan(sets: Sequence[str], budget: Budget, arms: Sequence[Arm] = ARMS) -> list[Row]:
    """Returns all rows but the label curve's, in an order in which each finds what it needs."""
    real = [name for name in sets if name != MOTION]
    rows: list[Row] = []
    for seed in range(budget.seeds):
        rows += _pretrainings(arms, "pool", range(budget.folds), seed, budget)
        for name, arm, fold in product(real, arms, range(budget.folds)):
            if seed == 0:
                rows += _tunings(arm, name, fold)
            if seed == 0 or arm.finalist:
                times = budget.repeats if arm.finalist else 1
                rows += [Row(TEST, arm.name, name, fold, seed, n) for n in range(times)]
    if MOTION in sets:
        chosen = [arm for arm in arms if arm.rate_of is None]
        rows += _pretrainings(chosen, MOTION, range(1), 0, budget)
        for arm in chosen:
            rows += _tunings(arm, MOTION, 0)
            rows += [Row(TEST, arm.name, MOTION, 0, 0, n) for n in range(budget.repeats)]
    return rows


def _pretrainings(
    arms: Sequence[Arm], pool: str, folds: range, seed: int, budget: Budget
) -> list[Row]:
    wanted = {arm.pretext: arm.finalist for arm in sorted(arms, key=lambda arm: arm.finalist)}
    return [
        Row(PRETRAIN, name, pool, fold, seed)
        for name, finalist in wanted.items()
        for fold in folds
        if name is not None and (seed == 0 or finalist)
    ]


def _tunings(arm: Arm, name: str, fold: int) -> list[Row]:
    if arm.rate_of is not None:
        return []
    return [Row(TUNE, arm.name, name, fold, rate=rate) for rate in range(len(arm.rates))]


def curve(winner: str, sets: Sequence[str], budget: Budget) -> list[Row]:
    """Returns the rows of the label curve: from scratch, and of an arm of ours."""
    real, times = [name for name in sets if name != MOTION], range(budget.curve_seeds)
    parts = [(name, fold, n, 0) for name, n, fold in product(real, times, range(budget.folds))]
    if MOTION in sets:  # which has one split and one pretraining
        parts += [(MOTION, 0, 0, n) for n in times]
    return [
        Row(CURVE, arm, *part, share=share)
        for share, part in product(budget.shares, parts)
        for arm in (BASELINE, winner)
    ]


def minutes(row: Row, budget: Budget) -> float:
    """Returns how long a row trains."""
    if row.kind == PRETRAIN:
        return budget.pretrain_minutes
    own = budget.scratch_minutes if BY_NAME[row.arm].pretext is None else budget.finetune_minutes
    return own * (1 - VAL_SHARE) if row.kind == TUNE else own  # as many epochs


def pretraining_of(row: Row, budget: Budget, *, shards: str = "") -> PretrainSettings:
    """Returns the settings of a pretraining."""
    return pretrain_settings(
        PRETEXTS[row.arm],
        shards=shards,
        split=row.fold + 1,
        seed=row.seed,
        minutes=minutes(row, budget),
        flip=row.set != MOTION,
    )


def finetuning_of(
    row: Row, budget: Budget, rate: tuple[float, float], *, shards: str = ""
) -> FinetuneSettings:
    """Returns the settings of a fine-tuning at a learning rate: (classifier's, trunk's)."""
    return finetune_settings(
        BY_NAME[row.arm],
        shards=shards,
        split=row.fold + 1,
        seed=100 * row.seed + row.repeat,
        minutes=minutes(row, budget),
        rate=rate,
        flip=row.set != MOTION,
        share=row.share,
        val_share=VAL_SHARE if row.kind == TUNE else 0.0,
    )


def kept(settings: TrainSettings) -> dict[str, Any]:
    """Returns what a finished row says about its settings, as it is read again."""
    said = {name: value for name, value in flatten(settings).items() if name not in _NOT_KEPT}
    return json.loads(json.dumps(said))


def is_of_today(row: Row, said: dict[str, Any], budget: Budget) -> bool:
    """Tells whether a finished row would have the same settings now.

    A setting that did not exist then has a default that changes nothing. The code of an arm is not
    looked at.

    Args:
        said: Settings of the finished row, as `kept` gave them.
    """
    if row.kind == PRETRAIN:
        choices = [kept(pretraining_of(row, budget))]
    else:
        arm = BY_NAME[row.arm]
        rates = BY_NAME[arm.rate_of or arm.name].rates
        rates = rates if row.rate is None else rates[row.rate : row.rate + 1]
        choices = [kept(finetuning_of(row, budget, rate)) for rate in rates]
    return any(all(said.get(name, v) == v for name, v in now.items()) for now in choices)


_NOT_KEPT = frozenset("shards runs shards_root name".split())
