"""Several runs, one for each split and seed, and what they say together."""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import TypeVar

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from dynamonet.frozen.statistics import accuracy_interval
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import atomic_file
from dynamonet.tracking.runs import TrackedRun, closing, start_run
from dynamonet.tracking.search import tagged
from dynamonet.tracking.store import tracking_uri
from dynamonet.training.run_folder import stage_folder
from finetune.evaluation import protocol
from finetune.evaluation.protocol import accuracy
from finetune.evaluation.run_results import measured_runs
from finetune.settings import FinetuneSettings
from finetune.train.auto import attempts, run_auto
from finetune.train.dry_run import dry_run
from finetune.train.experiment import Result, RunResult, Start, run_once

R = TypeVar("R", bound=RunResult)


@dataclass(frozen=True)
class FinetuneResult:
    """What stage 3 found."""

    runs: list[Result]  # one for each split and seed

    @property
    def model(self) -> Path:
        """The folder of the first run's model."""
        return self.runs[0].model

    @cached_property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the runs, and the interval of the mean accuracy."""
        names = self.runs[0].metrics
        found = {name: float(np.mean([run.metrics[name] for run in self.runs])) for name in names}
        if len(self.runs) > 1 and self.runs[0].protocol:
            outcomes = measured_runs([run.folder for run in self.runs]).outcomes
            found["top1_low"], found["top1_high"] = accuracy_interval(outcomes)
            if outcomes.deviation is not None:
                found["top1_deviation"] = outcomes.deviation
        return found


def single_runs(settings: FinetuneSettings, num_splits: int) -> list[FinetuneSettings]:
    """Returns the settings of each run: one for each split and each seed asked for."""
    splits = range(1, num_splits + 1) if settings.split == "all" else [settings.split]
    seeds = settings.seeds or (settings.seed,)
    several = len(splits) * len(seeds) > 1
    runs = []
    for split, seed in product(splits, seeds):
        name = settings.name
        if name is not None and several:
            name = f"{name}-split{split}-seed{seed}"
        update = {"split": split, "seed": seed, "seeds": None, "name": name}
        runs.append(settings.model_copy(update=update))
    return runs


def run_all(settings: FinetuneSettings, shards: ShardSet, console: Console) -> FinetuneResult:
    """Does every run asked for, on one Ray, and prints what several say together."""
    if settings.recipe == "auto" and settings.pretrained == "none":
        settings = settings.model_copy(update={"recipe": "full"})  # there is nothing to read
    auto = settings.recipe == "auto"
    singles = single_runs(settings, shards.num_splits)
    starts = attempts(singles[0], shards)[1:] if auto else Start.of_each(singles, shards)
    if settings.dry_run:
        dry_run(starts, console)
        return FinetuneResult([])
    if len(singles) == 1 and not auto:
        return FinetuneResult([run_once(starts[0], console)])
    name = group_name(settings, shards.name)
    with below_one(name, settings, starts[0], console) as above:
        if auto:

            def run(start: Start) -> Result:
                if len(singles) == 1:
                    return run_once(start, console, above)
                return run_each([start], name, console, above)[0]

            found = FinetuneResult([run_auto(each, shards, console, run) for each in singles])
        else:
            found = FinetuneResult(run_each(starts, name, console, above))
        above.log_metrics({0: {f"test/{k}": v for k, v in found.metrics.items()}})
        if len(found.runs) > 1 and found.runs[0].protocol:
            _summarise(found, name, above, console)
    return found


def group_name(settings: FinetuneSettings, subject: str) -> str:
    return settings.name or f"{subject}-{time.strftime('%Y%m%d-%H%M%S')}"


@contextmanager
def below_one(
    name: str, settings: FinetuneSettings, built_on: Start, console: Console
) -> Iterator[TrackedRun]:
    """Opens the run of the tracking store that several stand below; the same for the same name.

    Args:
        built_on: One of them, with the set and the weights of all.
    """
    results = str(stage_folder(settings, "finetune") / f"{name}.summary.json")
    uri = tracking_uri(settings.runs_path())
    if before := tagged(uri, "results", results):
        run = TrackedRun(uri, before[-1].run_id, before[-1].experiment_id, name)
        run.reopen()
    else:
        run = start_run(
            "finetune",
            name,
            settings,
            results=results,
            parents=[origin.id for origin in built_on.parents],
            datasets=[built_on.task.data.use("training")],
        )
    console.print(f"log      {Path(results).parent / f'{name}.log'}", soft_wrap=True)
    with closing(run):
        yield run
    console.print(f"MLflow   {run.ui_command()}", soft_wrap=True)


def run_each(
    starts: Sequence[Start],
    name: str,
    console: Console,
    above: TrackedRun,
    run: Callable[[Start, Console, TrackedRun], R] = run_once,
) -> list[R]:
    """Does some runs one after the other, a line each; what else they print goes into a file.

    Args:
        run: Does one.

    Raises:
        UserError: as one run does.
    """
    log = stage_folder(starts[0].task.settings, "finetune") / f"{name}.log"
    columns = (TextColumn("runs"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    done: list[R] = []
    with (
        log.open("a", encoding="utf-8") as file,
        Progress(*columns, console=console, speed_estimate_period=86_400) as progress,
    ):
        task = progress.add_task("", total=len(starts))
        for start in starts:
            began = time.monotonic()
            result = run(start, Console(file=file, width=120), above)
            done.append(result)
            progress.advance(task)
            minutes = (time.monotonic() - began) / 60
            what = accuracy(result.metrics) if result.protocol else _validated(result)
            console.print(f"{result.folder.name}  {what}, {minutes:.1f} minutes", soft_wrap=True)
    return done


def keep_files(
    settings: FinetuneSettings, above: TrackedRun, table: bytes, figure: Figure, console: Console
) -> None:
    """Writes what several runs say together beside them and into their run in the tracking store.

    Args:
        table: As comma-separated values.
    """
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    for ending, content in {"csv": table, "png": picture.getvalue()}.items():
        file = stage_folder(settings, "finetune") / f"{above.name}.{ending}"
        with atomic_file(file) as growing:
            growing.write_bytes(content)
        above.log_bytes(content, file.name)
        console.print(f"written  {file}", soft_wrap=True)


def _validated(result: RunResult) -> str:
    return f"validation top-1 {result.metrics['top1']:.1%}" if result.metrics else "not measured"


def _summarise(found: FinetuneResult, name: str, above: TrackedRun, console: Console) -> None:
    """Prints the mean with all that it depends on, and writes it beside the runs."""
    metrics, runs = found.metrics, found.runs
    spread = metrics.get("top1_deviation")
    over = f", deviation {spread:.1%} over seeds" if spread is not None else ", one seed a split"
    line = (
        f"{accuracy(metrics)}, mean of {len(runs)} runs{over}: "
        f"{protocol.line([run.protocol for run in runs if run.protocol])}"
    )
    above.tag(protocol=line)
    console.print(f"[bold]all      {line}[/bold]", soft_wrap=True)
    file = runs[0].folder.parent / f"{name}.summary.json"
    content = {
        "protocol": line,
        "top1_mean": metrics["top1"],
        "top1_deviation": spread,
        "top1_interval": [metrics["top1_low"], metrics["top1_high"]],
        "runs": [
            {"folder": str(r.folder), "split": r.settings.split, "seed": r.settings.seed}
            | r.metrics
            for r in runs
        ],
    }
    with atomic_file(file) as growing:
        growing.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    console.print(f"written  {file}", soft_wrap=True)
