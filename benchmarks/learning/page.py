"""docs/results.md, made of the results file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import numpy as np

from benchmarks.learning.arms import (
    ARMS,
    BASELINE,
    BATCH,
    BY_NAME,
    MODEL,
    OURS,
    PRETEXTS,
    Arm,
    Budget,
)
from benchmarks.learning.plan import PRETRAIN, TEST, Row
from benchmarks.learning.rows import Ledger
from benchmarks.learning.sets import MOTION, REAL
from benchmarks.learning.statistics import Difference, Scored, difference, holm, scored

COMMAND = "make bench-learning"
_HEAD = """# Results

Made by `{command}` of `benchmarks/results/learning.jsonl`, in which each training is a line. The
page holds {done} {planned} trainings that are planned.

Every arm has the same trunk (but for VideoMAE), which sees differences of frames unless the arm
says otherwise, clips of {frames} frames at {px} px, three learning rates to choose from by
validation groups inside the training folds, and the same minutes on two CPU cores: {finetune:.2g}
min a fine-tuning and {pretrain:.2g} min a pretraining, which serves {serves} fine-tunings; an arm
that is not pretrained here has {scratch:.2g} min a training instead. The arm `motion` starts from
one network, which was pretrained for 38 minutes on rendered motion beforehand. This is a small
scale: a pretraining sees about {clips:,} clips. What holds at a larger one it does not say.

Every clip is tested once, with folds of people (weizmann, 90 clips) or of scenes (fights, 300
clips); the rendered set, `motion`, has one split. Pretraining reads the unlabelled videos and the
training folds, never a test fold. The arms with a star have {seeds} pretrainings x {repeats}
fine-tunings a fold (initialisation, order and choice of labels vary together), the others
1 x 1; on `motion` all have 1 x {repeats}. Machine: {machine}.
"""
SURE = 0.05  # p below which a difference is called one
_RIVALS = tuple(arm for arm in ARMS if arm.finalist and arm.name != BASELINE)
OTHERS = tuple(arm.name for arm in _RIVALS if arm.name not in OURS)
_PLUS_MINUS = "± is the deviation over seeds. "


def render(ledger: Ledger, budget: Budget, rows: Sequence[Row], curve: Sequence[Row]) -> str:
    """Returns the page, in Markdown.

    Args:
        rows, curve: What was planned; what is not finished is left out, and the page says so.
    """
    planned = len(rows) + len(curve)
    rows, curve = ([row for row in each if ledger.row(row)] for each in (rows, curve))
    scores = scores_of(ledger, rows, budget.folds)
    own = [ledger.lines[row.key] for row in rows if row.kind == PRETRAIN and row.arm == "movers"]
    head = _HEAD.format(
        command=COMMAND,
        finetune=budget.finetune_minutes,
        pretrain=budget.pretrain_minutes,
        serves=2 * budget.repeats,
        scratch=budget.scratch_minutes,
        frames=MODEL["num_frames"],
        px=MODEL["frame_px"],
        machine="; ".join(sorted({ledger.lines[row.key]["machine"] for row in (*rows, *curve)})),
        clips=BATCH * round(np.mean([line["steps"] for line in own])) if own else 0,
        seeds=budget.seeds,
        repeats=budget.repeats,
        done="all" if len(rows) + len(curve) == planned else f"{len(rows) + len(curve)} of",
        planned=planned,
    )
    parts = (
        _accuracies(ledger, rows, scores),
        _differences(scores),
        _rivalry(scores),
        _pretrainings(ledger, rows),
        _curve(ledger, curve, scores),
    )
    return "\n\n".join([head, *("\n".join(part) for part in parts)]) + "\n"


def scores_of(ledger: Ledger, rows: Sequence[Row], folds: int) -> dict[tuple[str, str], Scored]:
    """Returns (arm, set) -> what its tests say; only of seeds that were tested on all folds."""
    by_arm: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.kind == TEST and ledger.row(row):
            by_arm.setdefault((row.arm, row.set), []).append(row)
    scores = {}
    for (arm, name), own in by_arm.items():
        times = Counter((row.seed, row.repeat) for row in own)
        wanted = 1 if name == MOTION else folds
        whole = [row for row in own if times[row.seed, row.repeat] == wanted]
        if whole:
            scores[arm, name] = scored([ledger.lines[row.key] for row in whole], ledger.lines)
    return scores


def _cell(own: Scored | None) -> str:
    if own is None:
        return ""
    spread = f" ± {100 * own.spread:.1f}" if len(own.seeds) > 1 else ""
    return f"{100 * own.accuracy:.1f}{spread}"


def _label(arm: Arm) -> str:
    return f"{arm.name}{' *' if arm.finalist else ''}"


def _accuracies(
    ledger: Ledger, rows: Sequence[Row], scores: dict[tuple[str, str], Scored]
) -> Iterator[str]:
    names = (*REAL, MOTION)
    tested = [ledger.lines[row.key] for row in rows if row.kind == TEST]
    yield (
        f"## Accuracy\n\nTop-1 in per cent over all clips. {_PLUS_MINUS}Steps are a fine-tuning's, "
        f"of {BATCH} clips, on the real sets.\n"
    )
    yield f"| arm | {' | '.join(names)} | steps | what it is |"
    yield "|---|" + "--:|" * (len(names) + 1) + "---|"
    cells = [_most_frequent(ledger, [line for line in tested if line["set"] == n]) for n in names]
    yield f"| guessing | {' | '.join(cells)} | | the most frequent class |"
    for arm in ARMS:
        found = [scores.get((arm.name, name)) for name in names]
        steps = [
            line["steps"] for line in tested if line["arm"] == arm.name and line["set"] in REAL
        ]
        cells = [_cell(own) for own in found]
        mean = f"{np.mean(steps):.0f}" if steps else ""
        yield f"| {_label(arm)} | {' | '.join(cells)} | {mean} | {arm.what} |"


def _most_frequent(ledger: Ledger, tested: Sequence[dict[str, Any]]) -> str:
    """Returns the share of the clips that have the most frequent label, in per cent."""
    parts = {line["part"] for line in tested}
    labels = Counter(label for part in parts for label in ledger.lines[part]["labels"])
    return f"{100 * max(labels.values()) / labels.total():.1f}" if labels else ""


def _differences(scores: dict[tuple[str, str], Scored]) -> Iterator[str]:
    yield (
        f"## Ahead of {BASELINE}?\n\nPoints of accuracy more than {BASELINE} has. The interval "
        "(95 %) resamples people or scenes; p is of a permutation over them, corrected by Holm for "
        f"the {len(_RIVALS)} arms of a set; `seen` is the difference that would be found 4 times "
        "in 5.\n"
    )
    yield "| set | arm | difference | interval | p | seen |\n|---|---|--:|--:|--:|--:|"
    compared = {}
    for names in (*((name,) for name in REAL), REAL):
        compared = _compared(scores, [(arm.name, BASELINE) for arm in _RIVALS], names)
        for (name, _), (each, p_value) in compared.items():
            yield f"| {' + '.join(names)} | {name} | {_points(each, p_value)} |"
    sure = {name: each.mean for (name, _), (each, p) in compared.items() if p < SURE}
    ahead = ", ".join(name for name, mean in sure.items() if mean > 0) or "none"
    behind = ", ".join(name for name, mean in sure.items() if mean < 0) or "none"
    yield (
        f"\nOn both sets together, by more than chance (p < {SURE}): ahead of {BASELINE}: {ahead}; "
        f"behind it: {behind}."
    )


def _rivalry(scores: dict[tuple[str, str], Scored]) -> Iterator[str]:
    yield (
        "## Ours against the others\n\nThe same differences, on both sets together, corrected for "
        "the rows of this table.\n"
    )
    yield "| arm | more than | difference | interval | p | seen |\n|---|---|--:|--:|--:|--:|"
    for (own, other), (each, p_value) in _compared(scores, [*product(OURS, OTHERS)]).items():
        yield f"| {own} | {other} | {_points(each, p_value)} |"


def _compared(
    scores: dict[tuple[str, str], Scored],
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str] = REAL,
) -> dict[tuple[str, str], tuple[Difference, float]]:
    """Compares arms with others; returns pair -> (difference, p corrected for their number)."""
    found = {pair: gain(scores, *pair, names) for pair in pairs}
    known = {pair: each for pair, each in found.items() if each}
    corrected = holm([each.p_value for each in known.values()])
    return {pair: (known[pair], p) for pair, p in zip(known, corrected, strict=True)}


def gain(
    scores: dict[tuple[str, str], Scored],
    arm: str,
    other: str = BASELINE,
    names: Sequence[str] = REAL,
) -> Difference | None:
    """Compares an arm with another on some sets; None where one of them is missing."""
    if not all((each, name) in scores for each in (arm, other) for name in names):
        return None
    return difference([(scores[arm, name], scores[other, name]) for name in names])


def _points(found: Difference, p_value: float) -> str:
    interval = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    seen = f"{100 * found.detectable:.0f}"
    return f"{100 * found.mean:+.1f} | {interval} | {p_value:.3f} | {seen}"


def _pretrainings(ledger: Ledger, rows: Sequence[Row]) -> Iterator[str]:
    yield (
        "## Pretraining\n\nMeans over folds and seeds on the real videos; skill of the last 50 "
        "steps, on training clips, movers included.\n"
    )
    yield "| pretraining | steps | parameters | skill |\n|---|--:|--:|--:|"
    for name in PRETEXTS:
        own = [
            ledger.lines[row.key]
            for row in rows
            if row.kind == PRETRAIN and row.arm == name and row.set != MOTION
        ]
        if not own:
            continue
        skills = [line["skill"] for line in own if line["skill"] is not None]
        skill = f"{np.mean(skills):.2f}" if skills else ""
        steps = np.mean([line["steps"] for line in own])
        yield f"| {name} | {steps:,.0f} | {own[0]['parameters']:,} | {skill} |"


def curve_of(ledger: Ledger, rows: Sequence[Row]) -> dict[tuple[str, str, float], Scored]:
    """Returns (set, arm, share of the labels) -> what the label curve says there."""
    by_point: dict[tuple[str, str, float], list[dict[str, Any]]] = {}
    for row in rows:
        if found := ledger.row(row):
            by_point.setdefault((row.set, row.arm, row.share), []).append(found)
    return {point: scored(own, ledger.lines) for point, own in by_point.items()}


def _curve(
    ledger: Ledger, rows: Sequence[Row], scores: dict[tuple[str, str], Scored]
) -> Iterator[str]:
    shares = sorted({row.share for row in rows})
    if not shares:
        return
    arms = sorted({row.arm for row in rows}, key=lambda name: name != BASELINE)
    yield (
        f"## With fewer labels\n\nTop-1 in per cent; other labels for each seed. {_PLUS_MINUS}"
        f"`{arms[-1]}` was the better of ours on validation.\n"
    )
    yield f"| set | arm | {' | '.join(f'{share:.0%}' for share in shares)} | 100% |"
    yield "|---|---|" + "--:|" * (len(shares) + 1)
    points = curve_of(ledger, rows)
    for name, arm in product(dict.fromkeys(row.set for row in rows), arms):
        cells = [points.get((name, arm, share)) for share in shares] + [scores.get((arm, name))]
        text = " | ".join(map(_cell, cells))
        yield f"| {name} | {_label(BY_NAME[arm])} | {text} |"
