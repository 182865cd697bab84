"""One run of stage 3, or one for each split and seed, and what they say together."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from dynamonet import cluster
from dynamonet.model.network import DynamoNet
from dynamonet.report.page import write_report
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import atomic_file
from dynamonet.tracking.origin import DatasetUse
from dynamonet.training.launch import launch
from dynamonet.training.start import Pretrained, transfer
from finetune.evaluation.metrics import interval
from finetune.evaluation.run_results import videos_of
from finetune.pretrained.load import find_pretrained, pretrained_weights
from finetune.settings import FinetuneSettings
from finetune.train.objective import Finetuning


@dataclass(frozen=True)
class Result:
    """A finished run."""

    settings: FinetuneSettings
    folder: Path
    model: Path
    metrics: dict[str, float]  # of the test part


@dataclass(frozen=True)
class FinetuneResult:
    """What stage 3 found."""

    runs: list[Result]  # one for each split and seed

    @property
    def model(self) -> Path:
        """The folder of the first run's model."""
        return self.runs[0].model

    @property
    def metrics(self) -> dict[str, float]:
        """The mean of each metric over the runs."""
        names = self.runs[0].metrics
        return {name: float(np.mean([run.metrics[name] for run in self.runs])) for name in names}


def run_once(settings: FinetuneSettings, shards: ShardSet, console: Console) -> Result:
    """Trains and tests once, and prints where the results are.

    Raises:
        UserError: the weights do not fit, or see `launch`.
    """
    path = shards.folder.path
    console.print(
        f"shards   {path}: {len(shards):,} segments, {len(shards.classes)} classes, "
        f"split {settings.split} of {shards.num_splits}",
        soft_wrap=True,
    )
    pretrained = find_pretrained(settings)
    task = Finetuning(settings, path, str(pretrained.folder) if pretrained else None)
    if pretrained:
        console.print(f"weights  {pretrained.folder}", soft_wrap=True)
        fitted = DynamoNet(task.architecture)
        weights = pretrained_weights(pretrained.folder, fitted.config)
        if pretrained.note:
            console.print(f"         {pretrained.note}", soft_wrap=True)
        console.print(f"         {transfer(fitted, weights, settings.min_loaded_share)}")
    else:
        console.print("weights  from scratch")
    made_by = (pretrained.origin if pretrained else None, shards.origin)
    name = path.rsplit("/", 1)[-1]
    done = launch(
        "finetune",
        name,
        task,
        parents=[origin for origin in made_by if origin],
        datasets=[DatasetUse(name, path, shards.digest, "training")],
        console=console,
    )
    metrics = done.run.metrics("test/")
    line = f"{accuracy(metrics)}: {protocol(task, pretrained)}"
    done.run.tag(protocol=line)
    console.print(f"[bold]test     {line}[/bold]", soft_wrap=True)
    console.print(f"model    {done.model}", soft_wrap=True)
    console.print(f"report   {write_report(str(done.folder), settings)}", soft_wrap=True)
    console.print(f"MLflow   {done.run.ui_command()}", soft_wrap=True)
    return Result(settings, done.folder, done.model, metrics)


def accuracy(metrics: dict[str, float]) -> str:
    """Returns the accuracies with the interval of the first."""
    more = f", top-5 {metrics['top5']:.1%}" if "top5" in metrics else ""
    return (
        f"top-1 {metrics['top1']:.1%} (95 % interval {metrics['top1_low']:.1%} to "
        f"{metrics['top1_high']:.1%}){more}, mean of classes {metrics['class_mean']:.1%}"
    )


def protocol(task: Finetuning, pretrained: Pretrained | None) -> str:
    """Returns all that an accuracy depends on."""
    settings, parts, names = task.settings, task.parts, task.data.table["source"].to_pylist()

    def videos(rows: np.ndarray) -> int:
        return len({names[row] for row in rows})

    chosen = "the last step"
    if len(parts.validation):
        chosen = f"the best step by {videos(parts.validation)} validation videos"
    data = "from scratch"
    if pretrained is not None:
        origin = pretrained.origin
        sets = [f"{use.name} ({use.digest[:8]})" for use in origin.datasets] if origin else []
        data = f"{pretrained.folder} pretrained on {', '.join(sets) or 'unknown data'}"
    return (
        f"{videos(parts.test)} {settings.test_part} videos of split {settings.split}, tested "
        f"once, {task.architecture.num_frames} frames x {settings.test_clips} clips x "
        f"{settings.test_crops} crop{'s' if settings.test_crops > 1 else ''}; "
        f"{settings.recipe}, {videos(parts.train)} training videos, {chosen}, "
        f"seed {settings.seed}, {data}"
    )


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


def run_all(settings: FinetuneSettings, shards: ShardSet, console: Console) -> list[Result]:
    """Does every run asked for, on one Ray, and prints what several say together."""
    runs = single_runs(settings, shards.num_splits)
    if len(runs) == 1:
        return [run_once(runs[0], shards, console)]
    done = []
    with cluster.connected():
        for number, single in enumerate(runs, 1):
            text = f"run {number} of {len(runs)}: split {single.split}, seed {single.seed}"
            console.rule(text, align="left")
            done.append(run_once(single, shards, console))
    _summarise(settings, done, console)
    return done


def _summarise(settings: FinetuneSettings, results: list[Result], console: Console) -> None:
    """Prints every run, their mean, spread and interval, and writes them beside the runs."""
    table = Table(title="Each run on its test part")
    for column in ("split", "seed", "top-1", "mean of classes", "videos"):
        table.add_column(column, justify="right")
    for result in results:
        own, scores_of = result.settings, result.metrics
        table.add_row(
            str(own.split),
            str(own.seed),
            f"{scores_of['top1']:.1%}",
            f"{scores_of['class_mean']:.1%}",
            f"{scores_of['videos']:.0f}",
        )
    scores = [result.metrics["top1"] for result in results]
    videos = videos_of([result.folder for result in results])
    low, high = interval(videos.right)
    console.print(table)
    console.print(
        f"[bold]all      top-1 {np.mean(scores):.1%}, deviation {np.std(scores, ddof=1):.1%} over "
        f"{len(results)} runs; 95 % interval {low:.1%} to {high:.1%} over {len(videos.sources)} "
        "videos[/bold]",
        soft_wrap=True,
    )
    name = (
        settings.name
        or f"{settings.shards_name().rsplit('/', 1)[-1]}-{time.strftime('%Y%m%d-%H%M%S')}"
    )
    file = results[0].folder.parent / f"{name}.summary.json"
    content = {
        "top1_mean": float(np.mean(scores)),
        "top1_deviation": float(np.std(scores, ddof=1)),
        "top1_interval": [low, high],
        "videos": len(videos.sources),
        "runs": [
            {"folder": str(r.folder), "split": r.settings.split, "seed": r.settings.seed}
            | r.metrics
            for r in results
        ],
    }
    with atomic_file(file) as growing:
        growing.write_text(json.dumps(content, indent=2) + "\n", "utf-8")
    console.print(f"written  {file}", soft_wrap=True)
