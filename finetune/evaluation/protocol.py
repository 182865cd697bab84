"""All that an accuracy depends on, in one line and in a file beside the predictions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import takewhile
from pathlib import Path

import pyarrow.compute as pc

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.shards.rows import RowSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import atomic_file
from dynamonet.tracking.runs import TrackedRun
from dynamonet.tracking.search import tagged

FILE = "test/protocol.json"
TEST_PART, TEST_SETTINGS = "test_part", "test_settings"  # tags of a run


@dataclass(frozen=True)
class MeasuredPart:
    """The videos that a model is measured on."""

    shards: str  # the set's name and the beginning of its digest
    part: str  # test or val
    split: int
    videos: int
    groups: int
    digest: str  # of the source videos

    @classmethod
    def of(cls, shards: ShardSet, rows: RowSet, part: str, split: int) -> MeasuredPart:
        found = shards.table.select(["source", "source_digest", "group"]).take(rows.numbers())
        group = pc.call_function("coalesce", [found["group"], found["source"]])
        digests = sorted(set(found["source_digest"].to_pylist()))
        return cls(
            shards=f"{shards.name} ({shards.digest[:8]})",
            part=part,
            split=split,
            videos=len(set(found["source"].to_pylist())),
            groups=len(set(group.to_pylist())),
            digest=digest_of_bytes("".join(digests).encode()),
        )


@dataclass(frozen=True)
class Times:
    """How often a test part has been looked at, by what the tracking store knows."""

    nth: int = 1  # measurement of these videos, this one included
    settings: int = 1  # different settings that were measured so far, seeds aside

    @classmethod
    def of(cls, run: TrackedRun) -> Times:
        """Counts the measured runs that began before a run, and itself."""
        tags = run.tags()
        same = tagged(run.uri, TEST_PART, tags[TEST_PART], measured="test/top1")
        before = list(takewhile(lambda each: each.run_id != run.run_id, same))  # oldest first
        settings = {each.tags.get(TEST_SETTINGS) for each in before} | {tags[TEST_SETTINGS]}
        return cls(1 + len(before), len(settings))


@dataclass(frozen=True)
class Protocol:
    """What one accuracy depends on."""

    test: MeasuredPart
    times: Times
    views: str  # of each segment
    recipe: str
    train_videos: int | None  # None: nothing was trained here
    chosen: str  # by what the weights were chosen
    seed: str
    start: str  # the weights that it began with
    seen: str  # whether they had seen test videos

    def write(self, folder: Path) -> None:
        """Writes it into a run's folder."""
        with atomic_file(folder / FILE) as growing:
            growing.write_text(json.dumps(asdict(self), indent=2) + "\n", "utf-8")

    @classmethod
    def read(cls, folder: Path) -> Protocol:
        """Reads it from a run's folder.

        Raises:
            UserError: it is missing or damaged.
        """
        path = folder / FILE
        try:
            found = json.loads(path.read_text("utf-8"))
            test, times = MeasuredPart(**found.pop("test")), Times(**found.pop("times"))
            return cls(test=test, times=times, **found)
        except FileNotFoundError:
            raise UserError(
                f"{folder}: no {FILE}; expected the folder of a measured run, as "
                "finetune/run.py prints it"
            ) from None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path}: damaged, or not of this program: {error}") from None


def accuracy(metrics: dict[str, float]) -> str:
    """Returns the accuracies with the interval of the first."""
    more = f", top-5 {metrics['top5']:.1%}" if "top5" in metrics else ""
    return (
        f"top-1 {metrics['top1']:.1%} (95 % interval {metrics['top1_low']:.1%} to "
        f"{metrics['top1_high']:.1%}){more}, mean of classes {metrics['class_mean']:.1%}"
    )


def line(runs: Sequence[Protocol]) -> str:
    """Says all that the mean of some runs depends on; what differs between them is listed."""

    def each(of: Callable[[Protocol], object]) -> str:
        return ", ".join(dict.fromkeys(text for run in runs if (text := str(of(run)))))

    first = runs[0].test
    several = len({run.test.split for run in runs}) > 1
    groups = "" if first.groups == first.videos else f" in {each(lambda r: r.test.groups)} groups"
    times = max((run.times for run in runs), key=lambda times: times.nth)
    trained = each(lambda r: r.train_videos or "")
    parts = (
        each(lambda r: r.recipe),
        trained and f"{trained} training videos",
        each(lambda r: r.chosen),
        (seeds := each(lambda r: r.seed)) and f"seed {seeds}",
        each(lambda r: r.start),
    )
    measured = (
        f"{each(lambda r: r.test.videos)} {first.part} videos{groups} of "
        f"split{'s' if several else ''} {each(lambda r: r.test.split)} of "
        f"{each(lambda r: r.test.shards)}, {_times(times)}, {each(lambda r: r.views)}"
    )
    made = ", ".join(part for part in parts if part)
    return "; ".join(part for part in (measured, made, each(lambda r: r.seen)) if part)


def _times(times: Times) -> str:
    if times.nth == 1:
        return "measured for the first time"
    return f"the {_ordinal(times.nth)} time on these videos, {times.settings} settings so far"


def _ordinal(number: int) -> str:
    if number % 100 in (11, 12, 13):
        return f"{number}th"
    return f"{number}{ {1: 'st', 2: 'nd', 3: 'rd'}.get(number % 10, 'th') }"
