"""Where every second of every source is: what was declared = taken + left out + not asked for."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from data_prep.settings import PrepSettings
from data_prep.shards.manifest import Inspected
from dynamonet.video.constant_rate import output_rate
from dynamonet.video.files import printable


@dataclass
class Ledger:
    """The seconds of one source, or the sums of many."""

    declared: float = 0.0  # by its header or, where that says less, by its packets
    taken: float = 0.0  # in segments of the index
    left_out: float = 0.0  # in quarantine
    frame: float = 0.0  # seconds of one frame

    @property
    def rest(self) -> float:
        """What is neither taken nor left out, beyond a frame; not asked for, or lost."""
        rest = self.declared - self.taken - self.left_out
        return rest if rest > self.frame + 1e-6 else 0.0


def ledgers(
    rows: pa.Table, quarantine: pa.Table, inspected: Iterable[Inspected], max_fps: float
) -> dict[str, Ledger]:
    """Returns the ledger of each source whose length is known, by its name.

    Args:
        rows: Of the index.
        max_fps: Of its segments.
    """
    found = {}
    for item in inspected:
        if item.info:
            declared = max(item.info.seconds, item.info.declared_seconds)
            frame = 1 / float(output_rate(item.info.fps, max_fps))
            found[printable(item.source.path)] = Ledger(declared, frame=frame)
    for name, seconds in _seconds(rows).items():
        if name in found:
            found[name].taken = seconds
    for name, seconds in _seconds(quarantine).items():
        if name in found:
            found[name].left_out = seconds
    whole = quarantine.filter(pc.call_function("is_null", [quarantine["start_seconds"]]))
    for name in set(whole["source"].to_pylist()) & found.keys():
        found[name].left_out = found[name].declared
    return found


def unaccounted(
    rows: pa.Table, quarantine: pa.Table, inspected: Iterable[Inspected], settings: PrepSettings
) -> dict[str, str]:
    """Returns what is missing, in words, of each source that was to be taken as a whole."""
    if settings.max_segments_per_video is not None:
        return {}
    books = ledgers(rows, quarantine, inspected, settings.encode.max_fps)
    return {
        name: f"{book.rest:.2f} s of {book.declared:.2f} s neither taken nor left out"
        for name, book in books.items()
        if book.rest
    }


def _seconds(table: pa.Table) -> dict[str, float]:
    """Returns the seconds of each source in a table of stretches."""
    lengths = pc.call_function("subtract", [table["end_seconds"], table["start_seconds"]])
    sums: dict[str, float] = defaultdict(float)
    for name, seconds in zip(table["source"].to_pylist(), lengths.to_pylist(), strict=True):
        sums[name] += seconds or 0.0
    return sums
