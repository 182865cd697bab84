"""Curves of a run's metrics as SVG pictures, related ones on one chart."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from dynamonet.training.perf.timer import STEP_PARTS

History = list[tuple[int, float]]  # (step, value), in the order of the steps
POINTS = 400  # of a curve; more are averaged together


@dataclass(frozen=True)
class Chart:
    """What is drawn on one pair of axes."""

    title: str
    pattern: str  # of the names of its metrics
    note: str = ""
    stacked: bool = False


CHARTS = (
    Chart("Loss", r"(train|epoch)/(loss|entropy)"),
    Chart("Loss of the prediction", r"train/prediction_loss|val/loss"),
    Chart(
        "Loss of the movers' displacements",
        r"train/displacement_loss",
        "Cross-entropy in nats; filters that know nothing have the logarithm of their taps.",
    ),
    Chart(
        "Skill",
        r"(train|val)/skill(_upper_bound)?(_level\d+)?|val/skill_h\d+",
        "1 - error / error of copying the last frame: above 0 it is better than a copy.",
    ),
    Chart(
        "Probe",
        r"probe/\w*top1",
        "Accuracy of the frozen network on clips held out. At commonest_top1 it knows nothing.",
    ),
    Chart("Accuracy", r"(train|epoch)/accuracy"),
    Chart(
        "Accuracy on the validation part",
        r"val/(top[15]|class_mean)",
        "By it the weights are chosen, and settings should be.",
    ),
    Chart(
        "Directions in which features vary",
        r"val/\w+_rank",
        "Effective rank. Near 1: they vary in one direction only, collapsed.",
    ),
    Chart("Spread of features", r"val/\w+_spread", "Near 0: all clips have the same, collapsed."),
    Chart("Learning rate", r"train/lr"),
    Chart("Clips a second", r"train/clips_per_second"),
    Chart(
        "Shares",
        r"train/(data_wait_share|mfu)",
        "Time spent waiting for data, and arithmetic by what the device could do (MFU).",
    ),
    Chart(
        "Where a step's time goes, ms",
        "|".join(f"time/{part}_ms" for part in STEP_PARTS),
        stacked=True,
    ),
)


def draw_charts(metrics: Mapping[str, History]) -> list[tuple[Chart, str]]:
    """Returns each chart that some metric belongs to, with its SVG."""
    drawn = []
    for chart in CHARTS:
        names = [name for name in metrics if re.fullmatch(chart.pattern, name)]
        if chart.stacked:
            names.sort(key=lambda name: STEP_PARTS.index(_short(name)))
        if names:
            drawn.append((chart, draw(chart, {name: metrics[name] for name in names})))
    return drawn


def draw(chart: Chart, metrics: Mapping[str, History]) -> str:
    """Returns the chart of some metrics as SVG."""
    figure = Figure(figsize=(5.6, 2.9), layout="constrained")
    axis = figure.subplots()
    curves = {name: thinned(history) for name, history in metrics.items()}
    if chart.stacked:
        steps = next(iter(curves.values()))[0]
        even = {name: np.interp(steps, *curve) for name, curve in curves.items()}
        axis.stackplot(steps, *even.values(), labels=[_short(name) for name in even])
    else:
        for name, (steps, values) in curves.items():
            dot = "." if len(steps) <= 40 else ""
            axis.plot(steps, values, marker=dot, linewidth=1.2, label=_short(name))
    axis.set_xlabel("step")
    axis.grid(alpha=0.3)
    axis.legend(fontsize=7)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    return text.getvalue()


def thinned(history: History) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Returns steps and values, averaged into at most `POINTS`; what is not finite is left out."""
    table = np.array([(s, v) for s, v in history if np.isfinite(v)], np.float64).reshape(-1, 2)
    parts = (
        np.array_split(table, POINTS) if len(table) > POINTS else np.split(table, len(table) or 1)
    )
    means = np.array([part.mean(0) for part in parts if len(part)]).reshape(-1, 2)
    return means[:, 0], means[:, 1]


def _short(name: str) -> str:
    """Returns a metric's name as a legend shows it."""
    return name.removeprefix("time/").removesuffix("_ms")
