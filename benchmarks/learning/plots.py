"""The plots of docs/results.md, made from the results file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure as Picture
from matplotlib.ticker import NullLocator

from benchmarks.learning.arms import (
    ARMS,
    CLIPS_SEEN,
    FINALISTS,
    SCALE,
    SCALES,
    SCRATCH,
    SHARES,
)
from benchmarks.learning.results import Results
from benchmarks.learning.rows import Ledger
from benchmarks.learning.sets import TESTED
from dynamonet.frozen.statistics import Outcomes, accuracy_interval
from dynamonet.storage import atomic_file

OWN = tuple(arm for arm in ARMS if arm.pretext == "own" and not arm.own_domain)


def draw_labels(ledger: Ledger, file: Path) -> None:
    """Draws accuracy over the share of the labels."""
    results, shares = Results(ledger), (*SHARES, 1.0)
    picture = Picture(figsize=(9.6, 2.9), layout="constrained")
    for axis, (name, what) in zip(picture.subplots(1, len(TESTED)), TESTED.items(), strict=True):
        for arm in FINALISTS:
            _plot(axis, [(s, results.of(arm, name, share=s)) for s in shares], arm)
        axis.set(title=f"{name}, {what}", xlabel="share of the labels", ylabel="top-1, %")
        _logarithmic(axis, shares, [f"{share:.0%}" for share in shares])
    picture.axes[0].legend(fontsize=8)
    _save(picture, file)


def draw_scale(ledger: Ledger, file: Path) -> None:
    """Draws accuracy over clips seen in pretraining."""
    results = Results(ledger)
    picture = Picture(figsize=(9.6, 2.9), layout="constrained")
    for axis, name in zip(picture.subplots(1, len(SCALES)), SCALES, strict=True):
        for videos in SCALES[name]:
            arms = [arm for arm in SCALE if arm.videos == videos]
            if videos == SCALES[name][-1]:  # where it is a number, all of them are hardly more
                arms = sorted([*arms, *OWN], key=lambda arm: arm.steps)
            points = [(arm.steps * arm.way.batch, results.of(arm.name, name)) for arm in arms]
            _plot(axis, points, f"{videos or 'all'} videos")
        if base := results.of(SCRATCH, name):
            axis.axhline(100 * base.mean, color="0.45", linestyle="--", label="from scratch")
        axis.set(title=name, xlabel="clips seen in pretraining", ylabel="top-1, %")
        _logarithmic(axis, CLIPS_SEEN, [f"{clips // 1000}k" for clips in CLIPS_SEEN])
    picture.axes[0].legend(fontsize=8)
    _save(picture, file)


def _plot(axis: Any, points: Sequence[tuple[float, Outcomes | None]], label: str) -> None:
    """Draws a line of accuracies, in per cent, with their 95 % intervals."""
    known = [(x, 100 * found.mean, *accuracy_interval(found)) for x, found in points if found]
    if known:
        x, top1, low, high = np.array(known).T
        ends = top1 - 100 * low, 100 * high - top1
        axis.errorbar(x, top1, ends, marker="o", capsize=3, elinewidth=0.6, label=label)


def _logarithmic(axis: Any, ticks: Sequence[float], labels: Sequence[str]) -> None:
    axis.set_xscale("log")
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(ticks, labels)
    axis.grid(alpha=0.3)


def _save(picture: Picture, file: Path) -> None:
    with atomic_file(file) as growing:
        picture.savefig(growing, format="png", dpi=110)
