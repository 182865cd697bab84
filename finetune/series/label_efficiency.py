"""The runs of a label-efficiency curve, its table and its picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice, pairwise, product

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, PercentFormatter
from rich.console import Console
from rich.table import Table

from dynamonet import cluster
from dynamonet.errors import UserError
from dynamonet.frozen.statistics import Difference, Outcomes, accuracy_interval, difference
from dynamonet.shards.shard_set import ShardSet
from finetune.evaluation import protocol
from finetune.evaluation.evaluator import as_csv
from finetune.evaluation.leakage import labels_spent
from finetune.evaluation.run_results import measured_runs
from finetune.pretrained.load import as_learnt, find_pretrained
from finetune.series_settings import CurveSettings
from finetune.settings import FinetuneSettings
from finetune.train.dry_run import dry_run
from finetune.train.experiment import Start
from finetune.train.objective import Finetuning
from finetune.train.several import below_one, group_name, keep_files, run_each, single_runs
from finetune.train.splits import Splits

SCRATCH, PRETRAINED = "from scratch", "pretrained"


@dataclass(frozen=True)
class Point:
    """All runs of one share of the labels, by the way of starting."""

    share: float
    train_videos: int
    outcomes: dict[str, Outcomes]

    @property
    def gain(self) -> Difference:
        """Of pretrained against scratch."""
        return difference(self.outcomes[SCRATCH], self.outcomes[PRETRAINED])


def label_curve(settings: CurveSettings, shards: ShardSet, console: Console) -> list[Point]:
    """Trains all points, prints the table, and writes CSV and picture.

    Raises:
        UserError: two shares give the same videos, or as a fine-tuning does.
    """
    pretrained = find_pretrained(settings)
    assert pretrained is not None
    name = group_name(settings, "curve")
    clips = as_learnt(settings.clips, pretrained.folder)  # from scratch the same
    base = settings.single(clips=clips)
    task = Finetuning(base, shards.folder.path, str(pretrained.folder))
    ways = {
        SCRATCH: settings.scratch.applied(base).model_copy(
            update={"model": task.architecture}  # not the default one
        ),
        PRETRAINED: base.model_copy(update={"pretrained": str(pretrained.folder)}),
    }
    videos = _train_videos(settings, base, shards)
    plan: dict[tuple[float, str], list[FinetuneSettings]] = {}
    for share, (way, single) in product(settings.shares, ways.items()):
        short = "scratch" if way == SCRATCH else way
        update = {"label_share": share, "name": f"{name}-{100 * share:g}-{short}"}
        plan[share, way] = single_runs(single.model_copy(update=update), shards.num_splits)
    starts = Start.of_each([single for each in plan.values() for single in each], shards)
    if settings.dry_run:
        dry_run(starts, console)
        return []
    console.print(f"curve    {name}: {len(starts)} trainings", soft_wrap=True)
    if spent := labels_spent(pretrained.origin):
        console.print(f"labels   the pretrained model was {spent} besides", soft_wrap=True)
    with cluster.connected(), below_one(name, settings, starts[-1], console) as above:
        left = iter(run_each(starts, name, console, above))
        done = {key: list(islice(left, len(each))) for key, each in plan.items()}
        found = {key: measured_runs([run.folder for run in each]) for key, each in done.items()}
        points = [
            Point(share, videos[share], {way: found[share, way].outcomes for way in ways})
            for share in settings.shares
        ]
        _show(points, console)
        for way in ways:
            measured = [run for share in settings.shares for run in found[share, way].protocols]
            console.print(f"{way:12} {protocol.line(measured)}", soft_wrap=True)
        for point in points:
            means = {f"test/top1 {way}": each.mean for way, each in point.outcomes.items()}
            above.log_metrics({point.train_videos: means})
        keep_files(settings, above, _csv(points), draw_curve(points, shards.name), console)
    return points


def _train_videos(
    settings: CurveSettings, base: FinetuneSettings, shards: ShardSet
) -> dict[float, int]:
    """Returns how many videos each share trains on, of the first split and seed.

    Raises:
        UserError: two shares give the same ones.
    """
    names = shards.table["source"].to_pylist()
    first, counts = single_runs(base, shards.num_splits)[0], dict[float, int]()
    for share in settings.shares:
        rows = Splits.of(shards, first.model_copy(update={"label_share": share})).train
        counts[share] = len({names[row] for row in rows})
    for few, many in pairwise(settings.shares):
        if counts[few] == counts[many]:
            raise UserError(
                f"--shares {few:g} and {many:g}: both are {counts[few]} videos, at least one of "
                "each class; leave one of them out"
            )
    return counts


def _show(points: Sequence[Point], console: Console) -> None:
    table = Table(title="Top-1 on the test part: mean of runs, and its 95 % interval")
    for column in ("labels", "videos", SCRATCH, PRETRAINED, "gain in points", "p"):
        table.add_column(column, justify="right")
    for point in points:
        cells = []
        for outcomes in point.outcomes.values():
            low, high = accuracy_interval(outcomes)
            cells.append(f"{outcomes.mean:.1%} ({low:.1%} to {high:.1%})")
        gain = point.gain
        table.add_row(
            f"{point.share:.0%}",
            str(point.train_videos),
            *cells,
            gain.points(),
            f"{gain.p_value:.2g}",
        )
    console.print(table)
    saved = labels_saved(points) or "no interval says that pretraining saves labels here"
    console.print(f"[bold]{saved}[/bold]", soft_wrap=True)


def labels_saved(points: Sequence[Point]) -> str | None:
    """Says with how few labels the pretrained model is better than the other with many, if it is.

    It is where the whole interval of the difference says so.
    """
    for many, few in product(reversed(points), points):
        if few.share < many.share:
            gain = difference(many.outcomes[SCRATCH], few.outcomes[PRETRAINED])
            if gain.low >= 0:
                return (
                    f"pretrained with {few.share:.0%} of the labels is at least as good as from "
                    f"scratch with {many.share:.0%}: {100 * gain.mean:+.1f} points, 95 % interval "
                    f"{100 * gain.low:+.1f} to {100 * gain.high:+.1f}"
                )
    return None


def _csv(points: Sequence[Point]) -> bytes:
    head = "label_share train_videos start top1_mean top1_deviation top1_low top1_high runs"
    rows: list[tuple[object, ...]] = []
    for point in points:
        for way, outcomes in point.outcomes.items():
            spread = outcomes.deviation
            ends = [f"{end:.4f}" for end in accuracy_interval(outcomes)]
            cells = (f"{outcomes.mean:.4f}", "" if spread is None else f"{spread:.4f}", *ends)
            rows.append((point.share, point.train_videos, way, *cells, len(outcomes.right)))
    return as_csv(head.split(), rows)


def draw_curve(points: Sequence[Point], name: str) -> Figure:
    """Draws accuracy over the share of labels, on a logarithmic scale; each dot is a run."""
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axis = figure.subplots()
    shares = [point.share for point in points]
    for way, colour in ((SCRATCH, "0.45"), (PRETRAINED, "tab:blue")):
        mean = [point.outcomes[way].mean for point in points]
        ends = (accuracy_interval(point.outcomes[way]) for point in points)
        low, high = zip(*ends, strict=True)
        axis.plot(shares, mean, color=colour, marker="o", label=way)
        axis.fill_between(shares, low, high, color=colour, alpha=0.2, linewidth=0)
        for point in points:
            scores = point.outcomes[way].each
            axis.scatter([point.share] * len(scores), scores, s=10, color=colour, alpha=0.5)
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    labels = [f"{point.share:.0%}\n{point.train_videos}" for point in points]
    axis.set_xticks(shares, labels)
    axis.yaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel="share of labels, and training videos", ylabel="top-1 on the test part")
    axis.set_title(f"{name}: mean of runs, 95 % interval", fontsize=10)
    axis.legend()
    axis.grid(alpha=0.3)
    return figure
