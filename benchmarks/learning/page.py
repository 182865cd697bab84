"""docs/results.md and its plots, made from the results file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from benchmarks.learning import readings_page
from benchmarks.learning.arms import (
    ARMS,
    CLIPS_SEEN,
    FINALISTS,
    LONGER,
    MOTION,
    OWN_12,
    PEERS,
    PRETEXTS,
    SCALE,
    SCALES,
    SCRATCH,
    SHARES,
    VARIANTS,
)
from benchmarks.learning.results import Results, cell, head, mean
from benchmarks.learning.rows import Ledger
from benchmarks.learning.sets import LABELLED, TESTED
from benchmarks.report import Figure
from dynamonet.frozen.statistics import (
    Difference,
)

_ARITHMETIC = (
    """## What larger scales cost

Measured speeds of pretraining, and what a day of them is. How accurate a network is after so many
clips was not measured beyond the table above.
""",
    "| network | on | clips/s | clips per day | passes over a million videos |",
    "|---|---|--:|--:|--:|",
    "| `tiny`, 8 x 48 px | one core | 100 | 8.6 million | 9 |",
    "| `tiny`, 8 x 48 px | two cores, with Ray Train | 120 | 10 million | 10 |",
    "| the default, 16 x 112 px | one H100 | 980 | 84 million | 84 |",
)
_IN_README = {
    SCRATCH: "from scratch",
    OWN_12: "**pretrained here, 12 minutes**",
    MOTION: "`--pretrained motion`",
}
EMPTY = 2  # entries of a section without a row: its title and the head of its table
_HEAD = """# Results

    make bench-learning

made this page from `benchmarks/results/learning.jsonl`, where each training is a line: {done:,} of
{planned:,} that are planned, {other} of them only to choose settings, on groups held out of
training parts. Machine: {machine}; one core per training.

**Sets.** weizmann: 90 clips, 10 actions, folds of people, chance level 10 %. fights: 300 clips of
surveillance cameras, folds of scenes, chance level 50 %. jhmdb: 928 clips, 21 actions, folds of
source videos, chance level 5 %. Every clip is tested once. Pretraining reads the videos of *other*
sets without their labels: 316 clips of skateboarding and swimming, and the training part of jhmdb
for weizmann and fights, those of weizmann and fights for jhmdb. No network has seen a clip that it
is tested on: each fine-tuning compares digests, and stops otherwise.

**Protocol.** All arms have the same network (VideoMAE: its own), clips of 8 frames at 48 px, 0.08 s
apart, and fine-tune everything at one rate for a fixed number of steps of 8 clips:
{steps}. ± and intervals (95 %) count groups and, where there are
several, seeds of pretraining and fine-tuning. Seconds are of one core of the machine with AVX512,
the pretraining's included; those of the other one are scaled by what scratch takes on weizmann, and
by the cost of a step of each pretraining, measured side by side.
Differences below 5 points between single seeds are not results.
"""


def render(ledger: Ledger) -> str:
    """Returns the page in Markdown; what is not finished is left out, and the page says so."""
    results = Results(ledger)
    lines = ledger.of(results.rows)
    head = _HEAD.format(
        done=len(lines),
        planned=len(results.rows),
        other=sum(line["part"] == "val" for line in lines),
        machine="; ".join(sorted({line["machine"] for line in lines})),
        steps="400, on jhmdb 1,200",
    )
    parts = (
        _accuracies(results),
        _differences(results),
        _longer(results),
        readings_page.sections(results),
        _curve(results),
        _scale(results),
        _ARITHMETIC,
        _variants(results),
        _pretrainings(results),
    )
    written = [lines for part in parts if len(lines := list(part)) > EMPTY]
    return "\n\n".join([head.rstrip(), *map("\n".join, written)]) + "\n"


def summary(ledger: Ledger) -> str:
    """Returns the table of README: accuracy, and points ahead of scratch at as many steps."""
    results = Results(ledger)
    rows = [head("top-1, %", *LABELLED, "seconds"), *readings_page.readme_rows(results)]
    every = [(arm, 1) for arm in (SCRATCH, OWN_12, MOTION, *PEERS)]
    for arm, longer in every + [(arm, LONGER) for arm in (SCRATCH, OWN_12)]:
        cells = [_ahead(results, arm, name, longer) for name in LABELLED]
        seconds = results.seconds(arm, LABELLED[0], longer=longer)
        if seconds is not None:
            title = _IN_README.get(arm, arm) + (f", {longer} x the steps" if longer > 1 else "")
            rows.append(f"| {title} | {' | '.join(cells)} | {seconds:,.0f} |")
    return "\n".join(rows)


def _ahead(results: Results, arm: str, name: str, longer: int) -> str:
    found = results.of(arm, name, longer=longer)
    gain = results.ahead(arm, SCRATCH, name, longer=longer)
    if found is None or gain is None or arm == SCRATCH:
        return cell(found)
    return f"{mean(found)}, {gain.points()}"


def _accuracies(results: Results) -> Iterator[str]:
    yield "## Does pretraining pay?\n\nTop-1 in per cent; * = one seed, else three.\n"
    names = [f"{name}, {what}" for name, what in TESTED.items()]
    yield head("arm", *names, *(f"s, {name}" for name in LABELLED))
    for arm in ARMS:
        cells = [cell(results.of(arm.name, name)) for name in LABELLED]
        spent = [results.seconds(arm.name, name) for name in LABELLED]
        prices = ["" if each is None else f"{each:,.0f}" for each in spent]
        if any(cells):
            yield f"| {arm.name} | {' | '.join(cells + prices)} |"
    yield ""
    yield from (f"- **{arm.name}**: {arm.what}." for arm in ARMS)


def _differences(results: Results) -> Iterator[str]:
    yield "## By how much?\n\nPoints of accuracy on the same clips, with the 95 % interval and p.\n"
    yield head("arm", "more than", *LABELLED)
    pairs = [(arm.name, SCRATCH) for arm in ARMS if arm.name != SCRATCH]
    pairs += [(OWN_12, peer) for peer in PEERS] + [(OWN_12, MOTION)]
    for arm, other in pairs:
        cells = [_points(results.ahead(arm, other, name)) for name in LABELLED]
        if any(cells):
            yield f"| {arm} | {other} | {' | '.join(cells)} |"


def _points(found: Difference | None) -> str:
    return "" if found is None else f"{found.points()}, p {found.p_value:.2g}"


def _curve(results: Results) -> Iterator[str]:
    yield (
        "## With fewer labels\n\n![Accuracy by the share of the labels](results-labels.png)\n\n"
        "Top-1 in per cent; the same steps, other labels for each seed.\n"
    )
    shares = (*SHARES, 1.0)
    yield head("set", "arm", *(f"{share:.0%}" for share in shares))
    for name, arm in product(LABELLED, FINALISTS):
        cells = [cell(results.of(arm, name, share=share)) for share in shares]
        if any(cells):
            yield f"| {name} | {arm} | {' | '.join(cells)} |"


def _scale(results: Results) -> Iterator[str]:
    yield (
        "## How much pretraining?\n\n![Accuracy by clips seen](results-scale.png)\n\n"
        "Our own pretraining on some of the videos, until so many clips are seen; one seed.\n"
    )
    yield head("set", "videos", *(f"{clips:,} clips" for clips in CLIPS_SEEN))
    for name, videos in ((each, videos) for each, sizes in SCALES.items() for videos in sizes):
        cells = []
        for arm in (each for each in SCALE if each.videos == videos):
            found = results.of(arm.name, name)
            cells.append("" if found is None else mean(found))
        if any(cells):
            yield f"| {name} | {videos or 'all'} | {' | '.join(cells)} |"


def _longer(results: Results) -> Iterator[str]:
    yield (
        f"## Has scratch converged?\n\nThe same with {LONGER} times the steps of fine-tuning, and "
        "the points that pretraining is ahead at as many steps.\n"
    )
    yield head("labels", "steps", "arm", *LABELLED)
    for share, longer in product((1.0, SHARES[1]), (1, LONGER)):
        if not any(results.of(SCRATCH, name, share=share, longer=LONGER) for name in LABELLED):
            continue
        at = {"share": share, "longer": longer}
        start = f"| {share:.0%} | {longer} x |"
        for arm in (SCRATCH, OWN_12):
            cells = [cell(results.of(arm, name, **at)) for name in LABELLED]
            yield f"{start} {arm} | {' | '.join(cells)} |"
        gains = [_points(results.ahead(OWN_12, SCRATCH, name, **at)) for name in LABELLED]
        yield f"{start} ahead | {' | '.join(gains)} |"


def _variants(results: Results) -> Iterator[str]:
    yield (
        "## Ways to pretrain\n\nThree minutes of one core each, measured on a third of the groups "
        "of the *training* folds; the mean, and each seed.\n"
    )
    yield head("way", "weizmann", "fights", "steps")
    for arm in VARIANTS:
        found = [results.tried(arm.name, name) for name in ("weizmann", "fights")]
        if any(found):
            cells = [_each_seed(each) for each in found]
            yield f"| {arm.name} | {' | '.join(cells)} | {arm.way.steps(arm.minutes):,} |"


def _each_seed(found: Sequence[float]) -> str:
    if not found:
        return ""
    seeds = ", ".join(f"{100 * each:.0f}" for each in found)
    return f"{100 * sum(found) / len(found):.1f} ({seeds})"


def figures(ledger: Ledger) -> list[Figure]:
    """Returns the figures that the claims rest on, in points of accuracy.

    Ahead = the lower end of the interval; not behind = its upper end. With few labels the mean.
    """
    results, found = Results(ledger), []
    compared = [(SCRATCH, 1), (SCRATCH, LONGER), *((peer, 1) for peer in PEERS)]
    for name, (other, longer) in product(LABELLED, compared):
        if gain := results.ahead(OWN_12, other, name, longer=longer):
            not_behind = name == "fights" and other == SCRATCH
            label = "not_behind" if not_behind else "ahead_of"
            end = gain.high if not_behind else gain.low
            what = other.split(",")[0] + (f"_at_{longer}_x_the_steps" if longer > 1 else "")
            found.append(Figure(f"own_12_{label}_{what}_{name}", 100 * end, 0.0))
    for name in LABELLED:
        few, more = results.of(OWN_12, name, share=0.1), results.of(SCRATCH, name, share=0.25)
        if few and more:
            points = 100 * (few.mean - more.mean)
            found.append(Figure(f"own_12_with_10%_less_scratch_with_25%_{name}", points, 0.0))
    return [*readings_page.figures(results), *found]


def _pretrainings(results: Results) -> Iterator[str]:
    yield "## The pretrainings\n\nSkill is that of the last 50 steps, on training clips.\n"
    yield head("pretext", "sets", "clips seen", "of segments", "seconds", "skill")
    for start, line in sorted(results.starts().items(), key=lambda pair: pair[0].key):
        skill = "" if line["skill"] is None else f"{line['skill']:.2f}"
        clips = start.steps * PRETEXTS[start.pretext].batch
        sets = " + ".join(start.sets)
        cells = (sets, f"{clips:,}", line["segments"], f"{results.price(start):,.0f}", skill)
        yield f"| {start.pretext} | {' | '.join(map(str, cells))} |"
