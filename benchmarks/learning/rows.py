"""Runs the rows of the learning benchmark, and keeps what they say.

A row is one training. It is written as a JSON line when it is finished and is not done again unless
its settings change, so the benchmark can be cut off at any time.
"""

from __future__ import annotations

import json
import queue
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from benchmarks.alone import Untracked, training_alone
from benchmarks.learning.arms import BY_NAME, PRETEXTS, Arm, Budget
from benchmarks.learning.plan import (
    PRETRAIN,
    TUNE,
    Row,
    finetuning_of,
    is_of_today,
    kept,
    pretraining_of,
)
from benchmarks.learning.sets import MOTION, LabelledSet
from benchmarks.learning.tasks import Classification
from dynamonet.digest import digest_of_bytes
from dynamonet.model.files import locate
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import atomic_file
from dynamonet.training.numerics.precision import hardware
from dynamonet.training.settings import TrainSettings
from dynamonet.training.task import Task
from dynamonet.training.trainer import Trainer
from finetune.evaluation.metrics import Predictions


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

    def share(self, name: str, content: dict[str, Any]) -> str:
        """Adds what many rows have in common, once, and returns its key."""
        key = f"{name}={digest_of_bytes(json.dumps(content).encode())}"
        self.add(key, **content)
        return key

    def forget(self, arms: Sequence[str], budget: Budget) -> int:
        """Drops the rows of some arms or ways to pretrain, and those that had other settings.

        Rows of an arm that is no more are kept.

        Returns:
            Their number.
        """
        rows = {k: Row(**{f.name: line[f.name] for f in fields(Row)}) for k, line in self._rows()}
        gone = {
            key
            for key, row in rows.items()
            if row.arm in arms or not is_of_today(row, self.settings(key), budget)
        }
        gone |= {k for k, row in rows.items() if (made := row.pretraining) and made.key in gone}
        if gone:
            self.lines = {k: line for k, line in self.lines.items() if k not in gone}
            with atomic_file(self.path) as growing:
                text = "".join(json.dumps(line) + "\n" for line in self.lines.values())
                growing.write_text(text, "utf-8")
        return len(gone)

    def settings(self, key: str) -> dict[str, Any]:
        """Returns all settings of a finished row; its line has what is not the default's."""
        line = self.lines[key]
        return self.lines[line["defaults"]]["settings"] | line["settings"]

    def _rows(self) -> list[tuple[str, dict[str, Any]]]:
        known = {*BY_NAME, *PRETEXTS}
        return [(key, line) for key, line in self.lines.items() if line.get("arm") in known]

    def row(self, row: Row) -> dict[str, Any] | None:
        """Returns a finished row's results."""
        return self.lines.get(row.key)


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
        said = row.key + json.dumps(kept(pretraining_of(row, self.budget)))
        return self.home / "models" / digest_of_bytes(said.encode())

    def chosen_rate(self, arm: Arm, name: str, fold: int) -> tuple[float, float]:
        """Returns the rate that was best on the validation part of the training folds."""
        if arm.rate_of is not None:
            return self.chosen_rate(BY_NAME[arm.rate_of], name, fold)
        scores = []
        for rate in range(len(arm.rates)):
            done = self.ledger.row(Row(TUNE, arm.name, name, fold, rate=rate))
            assert done is not None
            scores.append((done["top1"], done["log_likelihood"]))
        return arm.rates[scores.index(max(scores))]

    def _pretrain(self, row: Row) -> None:
        real = next(iter(self.sets.values()))
        shards = str(self.sets[MOTION].shards if row.set == MOTION else real.pool)
        settings = pretraining_of(row, self.budget, shards=shards)
        trainer, folder = self._train(PRETEXTS[row.arm].task(settings, (shards,)))
        shutil.rmtree(self.model(row), ignore_errors=True)
        self.model(row).parent.mkdir(parents=True, exist_ok=True)
        next(folder.glob("step-*")).rename(self.model(row))
        shutil.rmtree(folder)
        assert isinstance(trainer.job.run, Untracked)
        self._write(row, settings, trainer, skill=trainer.job.run.last_mean("train/skill"))

    def _finetune(self, row: Row) -> None:
        arm, labelled = BY_NAME[row.arm], self.sets[row.set]
        made = row.pretraining
        if made and not self.model(made).is_dir():
            self._pretrain(made)
        tunes = row.kind == TUNE
        rate = (
            arm.rates[row.rate]
            if row.rate is not None
            else self.chosen_rate(arm, row.set, row.fold)
        )
        settings = finetuning_of(row, self.budget, rate, shards=str(labelled.shards))
        start = self.model(made) if made else locate(arm.start) if arm.start else None
        task = Classification(
            settings,
            str(labelled.shards),
            str(start) if start else None,
            network=arm.network,
            change=arm.change,
            validates=tunes,
        )
        trainer, folder = self._train(task)
        shutil.rmtree(folder)
        said = task.outcome[-1]
        part = self._part(task.data, said)
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

    def _train(self, task: Task[Any]) -> tuple[Trainer, Path]:
        folder = self.home / "training"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        trainer = training_alone(
            task, Untracked(), folder, queue.SimpleQueue(), threads=self.threads
        )
        trainer.run()
        return trainer, folder

    def _part(self, data: ShardSet, said: Predictions) -> str:
        """Notes which clips were tested, with their groups, and returns the line's key."""
        names, given = data.table["source"].to_pylist(), data.table["group"].to_pylist()
        groups = dict(zip(names, given, strict=True))
        clips = {
            "sources": list(said.sources),
            "labels": said.labels.tolist(),
            "groups": [groups[name] or name for name in said.sources],
        }
        return self.ledger.share("clips", clips)

    def _write(self, row: Row, settings: TrainSettings, trainer: Trainer, **found: Any) -> None:
        state, said = trainer.state, kept(settings)
        defaults = kept(type(settings)())
        self.ledger.add(
            row.key,
            **asdict(row),
            **found,
            steps=state.step,
            minutes=round(state.minutes, 3),
            parameters=sum(p.numel() for p in trainer.train_state.model.parameters()),
            defaults=self.ledger.share("defaults", {"settings": defaults}),
            settings={k: v for k, v in said.items() if (k, v) not in defaults.items()},
            machine=hardware(torch.device("cpu")),
            at=time.strftime("%Y-%m-%d"),
        )
