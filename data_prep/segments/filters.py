"""Which segments are left out for what they show, and why."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.reasons import RejectReason
from data_prep.settings import FilterSettings


@dataclass(frozen=True)
class Filter:
    """One threshold on one score."""

    setting: str  # in FilterSettings; begins with min_ or max_
    score: str  # in index.SCORES
    kind: RejectReason  # of a segment below or above it

    def threshold(self, settings: FilterSettings) -> float | None:
        return getattr(settings, self.setting)

    def drops(self, score: float, threshold: float) -> bool:
        """Tells whether a score is beyond the threshold; what lies on it is kept."""
        return score > threshold if self.setting.startswith("max_") else score < threshold


FILTERS = (
    Filter("min_brightness", "brightness", RejectReason.TOO_DARK),
    Filter("max_black_share", "black_share", RejectReason.TOO_BLACK),
    Filter("max_static_share", "static_share", RejectReason.TOO_STATIC),
    Filter("max_slideshow", "slideshow", RejectReason.SLIDESHOW),
    Filter("max_border_share", "border_share", RejectReason.BORDER),
    Filter("min_motion", "motion", RejectReason.TOO_LITTLE_MOTION),
    Filter("max_motion", "motion", RejectReason.TOO_MUCH_MOTION),
)


def verdict(
    scores: dict[str, float], settings: FilterSettings
) -> tuple[RejectReason, str, float] | None:
    """Returns (kind, words, score) of why a segment is left out; None = it is kept."""
    for item in FILTERS:
        threshold, score = item.threshold(settings), scores[item.score]
        if threshold is not None and item.drops(score, threshold):
            text = f"{item.kind.value}: {score:g}, filters.{item.setting} is {threshold:g}"
            return item.kind, text, score
    return None
