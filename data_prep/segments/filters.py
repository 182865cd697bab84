"""Which segments the index leaves out for what they show, and why.

All segments are in their tars, with their scores: another threshold rewrites the index alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_prep.reasons import Rejected, RejectReason
from data_prep.settings import FilterSettings


@dataclass(frozen=True)
class Filter:
    """One threshold on one score."""

    setting: str  # in FilterSettings; begins with min_ or max_
    score: str  # in index.SCORES
    kind: RejectReason  # of a segment below or above it

    def threshold(self, settings: FilterSettings) -> float | None:
        return getattr(settings, self.setting)

    def drops(self, scores: NDArray[np.float64], threshold: float) -> NDArray[np.bool_]:
        """Tells which scores are beyond the threshold; what lies on it is kept."""
        return scores > threshold if self.setting.startswith("max_") else scores < threshold

    def rejected(self, row: dict[str, object], settings: FilterSettings) -> Rejected:
        """Returns the row of the quarantine for a segment that this filter leaves out."""
        score = row[self.score]
        text = f"{self.kind.value}: {score:g}, filters.{self.setting} is"
        text += f" {self.threshold(settings):g}"
        span = row["start_seconds"], row["end_seconds"]
        return Rejected(row["source"], self.kind, text, *span, score)  # type: ignore[arg-type]


FILTERS = (
    Filter("min_brightness", "brightness", RejectReason.TOO_DARK),
    Filter("max_black_share", "black_share", RejectReason.TOO_BLACK),
    Filter("max_static_share", "static_share", RejectReason.TOO_STATIC),
    Filter("max_slideshow", "slideshow", RejectReason.SLIDESHOW),
    Filter("max_border_share", "border_share", RejectReason.BORDER),
    Filter("min_motion", "motion", RejectReason.TOO_LITTLE_MOTION),
    Filter("max_motion", "motion", RejectReason.TOO_MUCH_MOTION),
)


def sift(rows: pa.Table, settings: FilterSettings) -> tuple[pa.Table, dict[Filter, pa.Table]]:
    """Returns the rows (INDEX_SCHEMA) that are kept, and those that each filter leaves out.

    A row that several filters would leave out is the first one's.
    """
    left_out = {}
    for item in FILTERS:
        threshold = item.threshold(settings)
        if threshold is not None:
            out = item.drops(rows[item.score].to_numpy(), threshold)
            left_out[item] = rows.filter(pa.array(out))
            rows = rows.filter(pa.array(~out))
    return rows, left_out
