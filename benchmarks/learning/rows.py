"""The rows of the learning benchmark: what each trains, and the file in which they are kept.

A row is one training. It is written as a JSON line when it is finished and is never done again, so
the benchmark can be cut off at any time.
"""

from __future__ import annotations

import hashlib
import json
import queue
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch

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
from benchmarks.learning.sets import MOTION, LabelledSet
from benchmarks.learning.tasks import Classification
from dynamonet.settings import flatten
from dynamonet.storage import atomic_file
from dynamonet.tracking.runs import TrackedRun
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.console import Progress
from dynamonet.training.settings import TrainSettings
from dynamonet.training.task import Job, Task
from dynamonet.training.trainer import Trainer
from finetune.evaluation.metrics import Predictions

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


@dataclass
class Ledger:
    """The results file: finished rows, and what they share."""

    path: Path
    lines: dict[str, dict[str, Any]]

    @classmethod
    def open(cls, path: Path) -> Ledger:
        text = path.read_text("utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return cls(path, {line["key"]: line for line in lines})

    def add(self, key: str, **content: Any) -> None:
        """Adds a line, unless it is there."""
        if key in self.lines:
            return
        self.lines[key] = {"key": key, **content}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.lines[key]) + "\n")

    def forget(self, arms: Sequence[str]) -> None:
        """Drops the rows of some arms, or of some ways to pretrain."""
        kept = {k: line for k, line in self.lines.items() if line.get("arm") not in arms}
        if len(kept) < len(self.lines):
            self.lines = kept
            with atomic_file(self.path) as growing:
                growing.write_text("".join(json.dumps(v) + "\n" for v in kept.values()), "utf-8")

    def row(self, row: Row) -> dict[str, Any] | None:
        """Returns a finished row's results."""
        return self.lines.get(row.key)


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
                rows += [Row(TEST, arm.name, name, fold, seed, n) for n in range(budget.repeats)]
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
    real = [name for name in sets if name != MOTION]
    seeds, folds = range(budget.curve_seeds), range(budget.folds)
    return [
        Row(CURVE, arm, name, fold, seed, share=share)
        for share, name, seed, fold in product(budget.shares, real, seeds, folds)
        for arm in (BASELINE, winner)
    ]


def minutes(row: Row, budget: Budget) -> float:
    """Returns how long a row trains."""
    if row.kind == PRETRAIN:
        return budget.pretrain_minutes
    own = budget.scratch_minutes if BY_NAME[row.arm].pretext is None else budget.finetune_minutes
    return own * (1 - VAL_SHARE) if row.kind == TUNE else own  # as many epochs


class Runner:
    """Runs rows, one after the other, in this process."""

    def __init__(
        self, ledger: Ledger, sets: dict[str, LabelledSet], home: Path, budget: Budget, threads: int
    ) -> None:
        self.ledger, self.sets, self.home, self.budget = ledger, sets, home, budget
        self.threads = threads

    def run(self, row: Row) -> None:
        """Does a row, unless it is done."""
        if self.ledger.row(row):
            return
        if row.kind == PRETRAIN:
            self._pretrain(row)
        else:
            self._finetune(row)

    def model(self, row: Row) -> Path:
        """Returns the folder of a pretraining's model."""
        return self.home / "models" / hashlib.blake2b(row.key.encode(), digest_size=8).hexdigest()

    def chosen_rate(self, arm: Arm, name: str, fold: int) -> tuple[float, float]:
        """Returns the rate that was best on the validation part of the training folds."""
        if arm.rate_of is not None:
            head, trunk = self.chosen_rate(BY_NAME[arm.rate_of], name, fold)
            return head, trunk
        scores = []
        for rate in range(len(arm.rates)):
            done = self.ledger.row(Row(TUNE, arm.name, name, fold, rate=rate))
            assert done is not None
            scores.append((done["top1"], done["log_likelihood"]))
        return arm.rates[scores.index(max(scores))]

    def _pretrain(self, row: Row) -> None:
        pretext, labelled = PRETEXTS[row.arm], next(iter(self.sets.values()))
        rendered = row.set == MOTION
        shards = str(self.sets[MOTION].shards if rendered else labelled.pool)
        settings = pretrain_settings(
            pretext,
            shards=shards,
            split=row.fold + 1,
            seed=row.seed,
            minutes=minutes(row, self.budget),
            flip=not rendered,
        )
        trainer, folder = self._train(pretext.task(settings, shards), row)
        shutil.rmtree(self.model(row), ignore_errors=True)
        self.model(row).parent.mkdir(parents=True, exist_ok=True)
        next(folder.glob("step-*")).rename(self.model(row))
        shutil.rmtree(folder)
        assert isinstance(trainer.job.run, Untracked)
        self._write(row, settings, trainer, skill=trainer.job.run.last_mean("train/skill"))

    def _finetune(self, row: Row) -> None:
        arm, labelled = BY_NAME[row.arm], self.sets[row.set]
        pretrained = None
        if arm.pretext:
            pool = MOTION if row.set == MOTION else "pool"
            made = Row(PRETRAIN, arm.pretext, pool, row.fold, row.seed)
            pretrained = self.model(made)
            if not pretrained.is_dir():
                self._pretrain(made)
        tunes = row.kind == TUNE
        rate = (
            arm.rates[row.rate]
            if row.rate is not None
            else self.chosen_rate(arm, row.set, row.fold)
        )
        settings = finetune_settings(
            arm,
            shards=str(labelled.shards),
            split=row.fold + 1,
            seed=100 * row.seed + row.repeat,
            minutes=minutes(row, self.budget),
            rate=rate,
            flip=row.set != MOTION,
            share=row.share,
            val_share=VAL_SHARE if tunes else 0.0,
        )
        task = Classification(
            settings,
            str(labelled.shards),
            str(pretrained) if pretrained else None,
            network=arm.network,
            change=arm.change,
            validates=tunes,
        )
        trainer, folder = self._train(task, row)
        shutil.rmtree(folder)
        said = task.outcome[-1]
        part = self._part(row, labelled, said)
        right = "".join("01"[each] for each in said.correct.astype(int))
        self._write(
            row,
            settings,
            trainer,
            part=part,
            right=right,
            top1=said.top(1),
            log_likelihood=said.log_likelihood(),
        )

    def _train(self, task: Task[Any], row: Row) -> tuple[Trainer, Path]:
        folder = self.home / "training"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        torch.set_num_threads(self.threads)
        progress = Progress(queue.SimpleQueue())  # type: ignore[arg-type]
        job = Job(task, Untracked("", "", "", ""), {}, progress, None, folder, 0, self.threads)
        trainer = Trainer(job, Rank(0, 1, torch.device("cpu")))
        trainer.run()
        return trainer, folder

    def _part(self, row: Row, labelled: LabelledSet, said: Predictions) -> str:
        """Notes which clips were tested, with their groups, and returns the line's key."""
        key = f"part={'validation' if row.kind == TUNE else 'test'} set={row.set} fold={row.fold}"
        table = labelled.opened().table
        names = table["source"].to_pylist()
        groups = dict(zip(names, table["group"].to_pylist(), strict=True))
        self.ledger.add(
            key,
            sources=said.sources,
            labels=said.labels.tolist(),
            groups=[groups[name] or name for name in said.sources],
        )
        return key

    def _write(self, row: Row, settings: TrainSettings, trainer: Trainer, **found: Any) -> None:
        said = {name: value for name, value in flatten(settings).items() if name not in _NOT_KEPT}
        state = trainer.state
        self.ledger.add(
            row.key,
            **asdict(row),
            **found,
            steps=state.step,
            minutes=round(state.minutes, 3),
            parameters=sum(p.numel() for p in trainer.train_state.model.parameters()),
            settings=said,
            at=time.strftime("%Y-%m-%d"),
        )


_NOT_KEPT = frozenset("shards runs shards_root name".split())


@dataclass(frozen=True)
class Untracked(TrackedRun):
    """Stands for a run of a tracking store where there is none; keeps its metrics."""

    rows: dict[int, Mapping[str, float]] = field(default_factory=dict)

    def last_mean(self, name: str, steps: int = 50) -> float | None:
        """Returns the mean of a metric over the last steps that have it."""
        values = [self.rows[step][name] for step in sorted(self.rows) if name in self.rows[step]]
        return float(np.mean(values[-steps:])) if values else None

    def tag(self, **tags: str) -> None:
        return None

    def log_metrics(
        self, rows: Mapping[int, Mapping[str, float]], *, after: Mapping[str, int] | None = None
    ) -> None:
        self.rows.update(rows)

    def log_figure(self, figure: Any, name: str) -> None:
        return None

    def log_bytes(self, content: bytes, name: str) -> None:
        return None

    def last_steps(self) -> dict[str, int]:
        return {}
