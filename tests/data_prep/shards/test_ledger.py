"""What was declared is taken, left out or not asked for, and what is none of these is told."""

from __future__ import annotations

from fractions import Fraction

import pyarrow as pa
import pytest

from data_prep.reasons import Rejected, RejectReason
from data_prep.settings import PrepSettings
from data_prep.shards.ledger import ledgers, unaccounted
from data_prep.shards.manifest import Inspected
from data_prep.sources.probe import VideoInfo
from dynamonet.shards import index
from dynamonet.video.files import Source

NAMES = ("source", "start_seconds", "end_seconds")
SPANS = pa.schema([index.INDEX_SCHEMA.field(name) for name in NAMES])


def source(name: str, seconds: float, declared: float = 0.0) -> Inspected:
    info = VideoInfo("0" * 32, seconds, Fraction(25), 64, 48, declared)
    return Inspected(Source(name, 1, 1), info)


def taken(*rows: tuple[str, float, float]) -> pa.Table:
    return pa.Table.from_pylist([dict(zip(NAMES, row, strict=True)) for row in rows], SPANS)


def lost(*rows: tuple[str, float | None, float | None]) -> pa.Table:
    items = [vars(Rejected(name, RejectReason.UNREADABLE, "x", *span)) for name, *span in rows]
    return pa.Table.from_pylist(items, index.QUARANTINE_SCHEMA)


def test_seconds_add_up_for_each_source() -> None:
    inspected = [source("a", 10.0), source("cut", 4.0, declared=9.0), source("bad", 3.0)]
    inspected.append(Inspected(Source("no header", 1, 1), None))
    rows = taken(("a", 0.0, 5.0), ("a", 5.0, 8.0), ("cut", 0.0, 4.0))
    quarantine = lost(("cut", 4.0, 9.0), ("bad", None, None), ("no header", None, None))
    books = ledgers(rows, quarantine, inspected, 30.0)
    assert books.keys() == {"a", "cut", "bad"}
    assert (books["a"].declared, books["a"].taken, books["a"].rest) == (10.0, 8.0, 2.0)
    assert (books["cut"].declared, books["cut"].left_out, books["cut"].rest) == (9.0, 5.0, 0.0)
    assert (books["bad"].left_out, books["bad"].rest) == (3.0, 0.0)
    settings = PrepSettings()
    told = unaccounted(rows, quarantine, inspected, settings)
    assert told == {"a": "2.00 s of 10.00 s neither taken nor left out"}
    few = settings.model_copy(update={"max_segments_per_video": 1})
    assert not unaccounted(rows, quarantine, inspected, few)  # they were not asked for


@pytest.mark.parametrize("end, rest", [(9.97, 0.0), (9.95, 0.05)])
def test_a_frame_may_be_missing_and_no_more(end: float, rest: float) -> None:
    (book,) = ledgers(taken(("a", 0.0, end)), lost(), [source("a", 10.0)], 30.0).values()
    assert book.rest == pytest.approx(rest)
