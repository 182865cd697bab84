"""The runs of a label-efficiency curve, its table and its picture."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from rich.console import Console
from rich.table import Table

from dynamonet import cluster
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import atomic_file
from finetune.evaluation.metrics import AccuracyComparison, compare_accuracy, interval
from finetune.evaluation.run_results import videos_of
from finetune.pretrained.load import find_pretrained
from finetune.settings import CurveSettings, FinetuneSettings
from finetune.train.experiment import Result, run_all, single_runs
from finetune.train.objective import Finetuning
from finetune.train.splits import Splits

SCRATCH, PRETRAINED = "from scratch", "pretrained"


@dataclass(frozen=True)
class Point:
    """All runs of one share of the labels."""

    share: float
    train_videos: int
    top1: dict[str, list[float]]  # way of starting -> accuracy of each run
    intervals: dict[str, tuple[float, float]]  # over test videos, runs averaged
    gain: AccuracyComparison  # of pretrained against scratch


def label_curve(settings: CurveSettings, shards: ShardSet, console: Console) -> list[Point]:
    """Trains all points, prints the table, and writes CSV and picture.

    Raises:
        UserError: as a fine-tuning does.
    """
    pretrained = find_pretrained(settings)
    assert pretrained is not None
    name = settings.name or f"curve-{time.strftime('%Y%m%d-%H%M%S')}"
    plain = {k: v for k, v in dict(settings).items() if k in FinetuneSettings.model_fields}
    base = FinetuneSettings.model_construct(**plain)
    task = Finetuning(base, shards.folder.path, str(pretrained.folder))
    ways = {
        SCRATCH: settings.scratch.applied(base).model_copy(
            update={"model": task.architecture}  # not the default one
        ),
        PRETRAINED: base.model_copy(update={"pretrained": str(pretrained.folder)}),
    }
    each = len(single_runs(base, shards.num_splits))
    trainings = len(settings.shares) * len(ways) * each
    console.print(f"curve    {name}: {trainings} trainings", soft_wrap=True)
    points, folder = [], Path()
    with cluster.connected():
        for share in settings.shares:
            done: dict[str, list[Result]] = {}
            for way, single in ways.items():
                console.rule(f"{share:.0%} of the labels, {way}", align="left")
                short = "scratch" if way == SCRATCH else way
                own = f"{name}-{100 * share:g}-{short}"
                update = {"label_share": share, "name": own}
                done[way] = run_all(single.model_copy(update=update), shards, console)
            points.append(_point(share, done, shards))
            folder = done[SCRATCH][0].folder.parent
    _show(points, console)
    for file, content in (
        (folder / f"{name}.csv", _csv(points)),
        (folder / f"{name}.png", _png(points, shards)),
    ):
        with atomic_file(file) as growing:
            growing.write_bytes(content)
        console.print(f"written  {file}", soft_wrap=True)
    return points


def _point(share: float, done: dict[str, list[Result]], shards: ShardSet) -> Point:
    videos = {way: videos_of([run.folder for run in runs]) for way, runs in done.items()}
    rows = Splits.of(shards, done[SCRATCH][0].settings).train
    names = shards.table["source"].take(rows).to_pylist()
    return Point(
        share=share,
        train_videos=len(set(names)),
        top1={way: [run.metrics["top1"] for run in runs] for way, runs in done.items()},
        intervals={way: interval(tested.right) for way, tested in videos.items()},
        gain=compare_accuracy(videos[SCRATCH].right, videos[PRETRAINED].right),
    )


def _show(points: Sequence[Point], console: Console) -> None:
    table = Table(title="Top-1 on the test part: mean of runs, and 95 % interval over videos")
    for column in ("labels", "videos", SCRATCH, PRETRAINED, "gain in points", "p"):
        table.add_column(column, justify="right")
    for point in points:
        cells = [
            f"{np.mean(point.top1[way]):.1%} ({low:.1%} to {high:.1%})"
            for way, (low, high) in point.intervals.items()
        ]
        gain = point.gain
        table.add_row(
            f"{point.share:.0%}",
            str(point.train_videos),
            *cells,
            f"{100 * gain.difference:+.1f} ({100 * gain.low:+.1f} to {100 * gain.high:+.1f})",
            f"{gain.p_value:.2g}",
        )
    console.print(table)
    saved = labels_saved(points)
    if saved is not None:
        console.print(f"[bold]{saved}[/bold]", soft_wrap=True)


def labels_saved(points: Sequence[Point]) -> str | None:
    """Says with how few labels the pretrained model is as good as the other with many, if it is."""
    for many in reversed(points):
        level = np.mean(many.top1[SCRATCH])
        few = next((p for p in points if np.mean(p.top1[PRETRAINED]) >= level), None)
        if few is not None and few.share < many.share:
            return (
                f"pretrained with {few.share:.0%} of the labels is at least as good as from "
                f"scratch with {many.share:.0%}"
            )
    return None


def _csv(points: Sequence[Point]) -> bytes:
    text = io.StringIO(newline="")
    head = ("label_share", "train_videos", "start", "top1_mean", "top1_deviation")
    rows: list[tuple[object, ...]] = [(*head, "top1_low", "top1_high", "runs")]
    for point in points:
        for way, scores in point.top1.items():
            spread = np.std(scores, ddof=1) if len(scores) > 1 else 0.0
            numbers = (np.mean(scores), spread, *point.intervals[way])
            cells = (f"{value:.4f}" for value in numbers)
            rows.append((point.share, point.train_videos, way, *cells, len(scores)))
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def _png(points: Sequence[Point], shards: ShardSet) -> bytes:
    figure = draw_curve(points, shards.folder.path.rsplit("/", 1)[-1])
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def draw_curve(points: Sequence[Point], name: str) -> Figure:
    """Draws accuracy over the share of labels, on a logarithmic scale; each dot is a run."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    shares = [point.share for point in points]
    for way, colour in ((SCRATCH, "0.45"), (PRETRAINED, "tab:blue")):
        mean = [float(np.mean(point.top1[way])) for point in points]
        low, high = zip(*(point.intervals[way] for point in points), strict=True)
        axis.plot(shares, mean, color=colour, marker="o", label=way)
        axis.fill_between(shares, low, high, color=colour, alpha=0.2, linewidth=0)
        for point in points:
            scores = point.top1[way]
            axis.scatter([point.share] * len(scores), scores, s=10, color=colour, alpha=0.5)
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    labels = [f"{point.share:.0%}\n{point.train_videos}" for point in points]
    axis.set_xticks(shares, labels)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel="share of labels, and training videos", ylabel="top-1 on the test part")
    axis.set_title(f"{name}: mean of runs, 95 % interval over test videos", fontsize=10)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
