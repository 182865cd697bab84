"""Runs the rows of the learning benchmark, two at a time on two cores, and keeps what they say.

A row is written as a JSON line when it is finished and is not done again unless its settings
change, so the benchmark can be cut off at any time: a pretraining that was cut off goes on from its
last checkpoint.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from benchmarks.alone import Untracked, training_alone
from benchmarks.learning.arms import BY_NAME, PRETEXTS, Row, Start
from benchmarks.learning.readings import Reading, features, read
from benchmarks.learning.settings import finetune_settings, pretrain_settings
from benchmarks.learning.tasks import Classification
from dynamonet.digest import digest_of_bytes
from dynamonet.model.files import locate, weights_digest
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import atomic_file
from dynamonet.tracking.seen import TrainedOn
from dynamonet.training.numerics.precision import hardware
from dynamonet.training.perf.allocator import keep_freed_memory
from dynamonet.training.settings import TrainSettings
from dynamonet.training.task import Task
from dynamonet.training.trainer import Trainer
from finetune.evaluation.metrics import Predictions
from finetune.settings import FinetuneSettings, Recipe
from finetune.train.auto import RECIPES
from finetune.train.splits import HELD_OUT

SAVED_EVERY_STEPS = 1000  # of a pretraining
Line = dict[str, Any]


def settings_of(row: Row | Reading | Start, shards: dict[str, str]) -> TrainSettings:
    """Returns the settings of a training."""
    if isinstance(row, Start):
        return pretrain_settings(row, shards)
    if isinstance(row, Reading):
        return row.settings(shards)
    return finetune_settings(row, shards)


def kept(row: Row | Reading | Start, shards: dict[str, str]) -> str:
    """Returns the digest of what the benchmark sets for a row, and of the weights it is brought."""
    texts = list[str]()
    for each in row.alone if isinstance(row, Reading) else [row]:
        settings = settings_of(each, shards)
        said = settings.model_dump(mode="json", exclude_unset=True, exclude={"shards"})
        brought = None if isinstance(each, Start) else BY_NAME[each.arm].brought
        said |= {"weights": weights_digest(locate(brought))} if brought else {}
        texts.append(json.dumps(said, sort_keys=True))
    return digest_of_bytes("".join(texts).encode())


@dataclass
class Ledger:
    """The results file: a line for each finished row, and for the clips of each tested part."""

    path: Path
    lines: dict[str, Line]

    @classmethod
    def open(cls, path: Path) -> Ledger:
        text = path.read_text("utf-8") if path.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return cls(path, {line["key"]: line for line in lines})

    def add(self, line: Line) -> None:
        """Adds a line, unless it is there."""
        if line["key"] in self.lines:
            return
        self.lines[line["key"]] = line
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def of(self, rows: Iterable[Row | Reading]) -> list[Line]:
        """Returns the lines of rows that are finished."""
        return [self.lines[row.key] for row in rows if row.key in self.lines]

    def forget(self, rows: Sequence[Row | Reading], shards: dict[str, str]) -> int:
        """Drops rows that had other settings, with those that started from them; returns how many.

        Rows of an arm that is no more are kept.
        """
        starts = {start.key: start for row in rows if (start := row.start)}
        every: list[Row | Reading | Start] = [*starts.values(), *rows]
        old = {
            each.key
            for each in every
            if each.key in self.lines and self.lines[each.key]["settings"] != kept(each, shards)
        }
        old |= {
            row.key
            for row in rows
            if row.key in self.lines and (start := row.start) and start.key in old
        }
        if old:
            self.lines = {key: line for key, line in self.lines.items() if key not in old}
            with atomic_file(self.path) as growing:
                text = "".join(json.dumps(line) + "\n" for line in self.lines.values())
                growing.write_text(text, "utf-8")
        return len(old)


@dataclass(frozen=True)
class Runner:
    """Does rows, each in one process with one thread. Picklable."""

    home: Path
    shards: dict[str, str]

    def model(self, start: Start) -> Path:
        """Returns the folder of a pretraining's model."""
        said = f"{start.key} {kept(start, self.shards)}"
        return self.home / "models" / digest_of_bytes(said.encode())

    def run(
        self, rows: Sequence[Row | Reading], ledger: Ledger, told: Callable[[Line], None]
    ) -> None:
        """Does the rows that are not finished, in their order where that is possible.

        Args:
            told: Gets each line as its row finishes.
        """
        left: list[Row | Reading] = [row for row in rows if row.key not in ledger.lines]
        running: dict[Future[list[Line]], str] = {}
        cores = len(os.sched_getaffinity(0))
        with ProcessPoolExecutor(cores, get_context("spawn")) as pool:
            while left or running:
                while len(running) < cores and (each := self._ready(left, {*running.values()})):
                    running[pool.submit(self.lines_of, each)] = each.key
                    left = [row for row in left if row is not each]
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    del running[future]
                    for line in future.result():
                        ledger.add(line)
                        if "set" in line or "pretext" in line:
                            told(line)

    def _ready(
        self, left: Sequence[Row | Reading], running: set[str]
    ) -> Row | Reading | Start | None:
        """Returns the first row that can be done now, or the pretraining that it waits for."""
        for row in left:
            start = row.start
            if start is None or self.model(start).is_dir():
                return row
            if start.key not in running:
                return start
        return None

    def lines_of(self, row: Row | Reading | Start) -> list[Line]:
        """Does a row, and returns what is to be kept of it."""
        torch.set_num_threads(1)
        keep_freed_memory()  # as the product does
        if isinstance(row, Start):
            return [self._pretrain(row)]
        return self._read(row) if isinstance(row, Reading) else self._finetune(row)

    def _pretrain(self, start: Start) -> Line:
        settings = pretrain_settings(start, self.shards)
        settings = settings.model_copy(update={"checkpoint_every_steps": SAVED_EVERY_STEPS})
        task = PRETEXTS[start.pretext].task(settings, settings.shards, None, None)
        model = self.model(start)
        trainer, seconds = self._train(task, model.with_name(f"{model.name}.growing"))
        growing = trainer.job.home
        finished = growing / f"step-{start.steps:08d}"
        task.trained_on().write(finished)
        finished.rename(model)
        shutil.rmtree(growing)
        assert isinstance(trainer.job.run, Untracked)
        skill = trainer.job.run.last_mean("train/skill")
        segments = len(task.training_data().rows)
        return self._line(start, seconds, trainer, segments=segments, skill=skill)

    def _task(self, row: Row | Reading) -> tuple[Classification, Path | None]:
        """Returns what a row trains, and the model that it starts from."""
        arm, start = BY_NAME[row.arm], row.start
        place = self.model(start) if start else locate(arm.brought) if arm.brought else None
        settings = settings_of(row, self.shards)
        assert isinstance(settings, FinetuneSettings)
        task = Classification(
            settings.model_copy(update={"runs": str(self.home / "runs")}),
            self.shards[row.set],
            str(place) if place else None,
            network=arm.way.network,
            validates=isinstance(row, Row) and row.part == "val",
        )
        self._guard(task, place)
        return task, place

    def _read(self, row: Reading) -> list[Line]:
        tasks = [self._task(each) for each in row.alone]
        networks = [features(task, row, place, self.home) for task, place in tasks]
        task, _ = tasks[0]
        return self._lines(row, task, *read(task, row, networks), None)

    def _finetune(self, row: Row) -> list[Line]:
        task, _ = self._task(row)
        home = self.home / "training" / digest_of_bytes(row.key.encode())
        if row.recipe != "auto":
            return self._lines(row, task, *self._trained(task, home))
        # as finetune.train.auto does without a validation part
        tried: dict[Recipe, tuple[Predictions, float, Trainer]] = {}
        for recipe in RECIPES:
            tried[recipe] = self._trained(_attempt(task, recipe, HELD_OUT), home)
        best = max(tried, key=lambda each: (tried[each][0].top(1), tried[each][0].log_likelihood()))
        found, seconds, trainer = self._trained(_attempt(task, best, 0.0), home)
        seconds += sum(spent for _, spent, _ in tried.values())
        part, line = self._lines(row, task, found, seconds, trainer)
        return [part, line | {"keeps": best}]

    def _trained(self, task: Classification, home: Path) -> tuple[Predictions, float, Trainer]:
        """Trains and measures; returns seconds without those of measuring."""
        shutil.rmtree(home, ignore_errors=True)
        trainer, seconds = self._train(task, home)
        shutil.rmtree(home)
        return task.outcome[-1], seconds - task.seconds[-1], trainer

    def _lines(
        self,
        row: Row | Reading,
        task: Classification,
        found: Predictions,
        seconds: float,
        trainer: Trainer | None,
    ) -> list[Line]:
        part = self._part(task.data, found)
        line = self._line(
            row,
            seconds,
            trainer,
            clips=part["key"],
            right="".join("01"[each] for each in found.correct.astype(int)),
            top1=found.top(1),
            log_likelihood=found.log_likelihood(),
        )
        return [part, line]

    def _guard(self, task: Classification, place: Path | None) -> None:
        """Stops where a model has learnt from a clip that it is tested on."""
        tested = task.data.table["source_digest"].take(task.parts.test).to_pylist()
        if place is not None and TrainedOn.read(place).has(tested).any():
            raise RuntimeError(f"{place} has seen clips that it is tested on")

    def _train(self, task: Task[Any], home: Path) -> tuple[Trainer, float]:
        """Trains, or goes on; returns processor seconds, of steps done before at today's price."""
        home.mkdir(parents=True, exist_ok=True)
        trainer = training_alone(task, Untracked(), home, queue.SimpleQueue())
        before, began = trainer.state.step, time.process_time()
        trainer.run()
        spent, steps = time.process_time() - began, trainer.state.step
        return trainer, spent * steps / (steps - before) if steps > before else spent

    def _part(self, data: ShardSet, found: Predictions) -> Line:
        """Notes which clips were tested, with their groups."""
        clips = {
            "sources": list(found.sources),
            "labels": found.labels.tolist(),
            "groups": list(found.groups),
        }
        return {"key": f"clips={digest_of_bytes(json.dumps(clips).encode())}", **clips}

    def _line(
        self, row: Row | Reading | Start, seconds: float, trainer: Trainer | None, **found: Any
    ) -> Line:
        line = {"key": row.key, **asdict(row), **found, "seconds": round(seconds, 1)}
        if trainer is not None:
            parameters = sum(p.numel() for p in trainer.train_state.model.parameters())
            line |= {"steps": trainer.state.step, "parameters": parameters}
        machine = hardware(torch.device("cpu"))
        own = {"settings": kept(row, self.shards), "machine": machine, "at": time.strftime("%F")}
        return line | own


def _attempt(task: Classification, recipe: Recipe, held_out: float) -> Classification:
    """Returns one of the two trainings that `auto` chooses from; measured on what is held out."""
    update = {"recipe": recipe, "val_share": held_out}
    settings = task.settings.model_copy(update=update)
    return replace(task, settings=settings, validates=held_out > 0, outcome=[], seconds=[])
