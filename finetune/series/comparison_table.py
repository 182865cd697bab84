"""The table of a comparison and its picture."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dynamonet.frozen.statistics import Outcomes, accuracy_interval, difference
from finetune.evaluation.evaluator import as_csv

COLOURS = {"ridge": "tab:blue", "attentive": "tab:orange", "full": "tab:green"}


@dataclass(frozen=True)
class Row:
    """All runs of one network with one recipe."""

    title: str
    recipe: str
    parameters: int  # of the trunk
    features_minutes: float | None  # for all views of the set, once
    minutes: float  # of a run, the mean
    outcomes: Outcomes

    @property
    def interval(self) -> tuple[float, float]:
        return accuracy_interval(self.outcomes)


def best_of(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: row.outcomes.mean)


def against_best(rows: Sequence[Row]) -> Iterator[tuple[Row, str]]:
    """Yields each row with how far it lies behind the best one, in points."""
    best = best_of(rows)
    for row in rows:
        if row is best:
            yield row, "the best"
            continue
        yield row, difference(best.outcomes, row.outcomes).points()


def show(rows: Sequence[Row], console: Console) -> None:
    """Prints the table, and which row is the best."""
    table = Table(
        title="Top-1 on the test part: mean of runs, and its 95 % interval",
        caption="M: millions of parameters. min: of all features beside a network, of one run "
        "beside a recipe. Points behind the best",
        box=None,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True, max_width=24)
    for column in ("M", "min", "top-1", "interval", "behind"):
        table.add_column(column, justify="right", no_wrap=True)
    before = ""
    for row, behind in against_best(rows):
        low, high = row.interval
        if row.title != before:
            features = "" if row.features_minutes is None else f"{row.features_minutes:.1f}"
            table.add_row(Text(row.title, "bold"), f"{row.parameters / 1e6:.1f}", features)
            before = row.title
        table.add_row(
            f"  {row.recipe}",
            "",
            f"{row.minutes:.1f}",
            f"{row.outcomes.mean:.1%}",
            f"{100 * low:.1f} to {100 * high:.1f}",
            behind,
        )
    console.print(table)
    best = best_of(rows)
    equal = [
        f"{row.title} {row.recipe}"
        for row in rows
        if row is not best and difference(row.outcomes, best.outcomes).low <= 0
    ]
    chance = f"; no more than chance ahead of {', '.join(equal)}" if equal else ""
    console.print(f"[bold]best     {best.title}, {best.recipe}[/bold]{chance}", soft_wrap=True)


def table_csv(rows: Sequence[Row]) -> bytes:
    """Returns the table as a file of comma-separated values."""
    head = (
        "network recipe trunk_parameters features_minutes run_minutes top1_mean top1_low top1_high"
    )
    lines: list[tuple[object, ...]] = []
    for row in rows:
        features = "" if row.features_minutes is None else f"{row.features_minutes:.3f}"
        accuracy = [f"{value:.4f}" for value in (row.outcomes.mean, *row.interval)]
        about = row.title, row.recipe, row.parameters, features, f"{row.minutes:.3f}"
        lines.append((*about, *accuracy, len(row.outcomes.right)))
    return as_csv([*head.split(), "top1_high", "runs"], lines)


def draw(rows: Sequence[Row], name: str) -> Figure:
    """Draws each row's mean with its interval; each small dot is a run."""
    figure = Figure(figsize=(7.2, 1.3 + 0.36 * len(rows)), layout="constrained")
    axis = figure.subplots()
    titles = list(dict.fromkeys(row.title for row in rows))
    ticks = []
    for number, row in enumerate(rows):
        place = number + 0.5 * titles.index(row.title)
        ticks.append(place)
        low, high = row.interval
        colour = COLOURS[row.recipe]
        axis.plot([low, high], [place, place], color=colour, linewidth=2, alpha=0.5)
        axis.plot([row.outcomes.mean], [place], "o", color=colour)
        each = row.outcomes.each
        axis.scatter(each, [place] * len(each), s=8, color=colour, alpha=0.4)
    axis.set_yticks(ticks, [f"{row.title}, {row.recipe}" for row in rows], fontsize=8)
    axis.invert_yaxis()
    axis.xaxis.set_major_formatter(PercentFormatter(1.0))
    axis.set(xlabel="top-1 on the test part")
    axis.set_title(f"{name}: mean of runs, 95 % interval", fontsize=10)
    used = [recipe for recipe in COLOURS if any(row.recipe == recipe for row in rows)]
    handles = [Line2D([], [], color=COLOURS[recipe], marker="o", label=recipe) for recipe in used]
    axis.legend(handles=handles, fontsize=8, loc="best")
    axis.grid(axis="x", alpha=0.3)
    return figure
