"""Which segments are left out for what they show, and why."""

from __future__ import annotations

from dataclasses import dataclass

from data_prep.settings import FilterSettings
from data_prep.sources import EXCLUDED, NEAR, SAME_CONTENT


@dataclass(frozen=True)
class Filter:
    """One threshold on one score."""

    setting: str  # in FilterSettings; begins with min_ or max_
    score: str  # in index.SCORES
    reason: str  # how the reason of a segment below or above it begins

    def threshold(self, settings: FilterSettings) -> float | None:
        return getattr(settings, self.setting)

    def drops(self, score: float, threshold: float) -> bool:
        """Tells whether a score is beyond the threshold; what lies on it is kept."""
        return score > threshold if self.setting.startswith("max_") else score < threshold


FILTERS = (
    Filter("min_brightness", "brightness", "too dark"),
    Filter("max_black_share", "black_share", "too black"),
    Filter("max_static_share", "static_share", "too static"),
    Filter("max_slideshow", "slideshow", "too much of a slideshow"),
    Filter("max_border_share", "border_share", "too much border"),
    Filter("min_motion", "motion", "too little motion"),
    Filter("max_motion", "motion", "too much motion"),
)
TOO_SHORT = "too short"  # how the reason of a segment below min_seconds begins
# how the reasons begin that another try would not change
LASTING = (TOO_SHORT, *(item.reason for item in FILTERS), SAME_CONTENT, NEAR, EXCLUDED)


def verdict(scores: dict[str, float], settings: FilterSettings) -> tuple[str, float] | None:
    """Returns why a segment is left out, and its score; None = it is kept."""
    for item in FILTERS:
        threshold, score = item.threshold(settings), scores[item.score]
        if threshold is not None and item.drops(score, threshold):
            return f"{item.reason}: {score:g}, filters.{item.setting} is {threshold:g}", score
    return None


def is_lasting(reason: str) -> bool:
    """Tells whether something was left out for what it is; another try would not help."""
    return reason.startswith(LASTING)
