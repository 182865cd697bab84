"""Why a video, or a time range of one, is not taken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class RejectReason(str, Enum):
    """The kinds of reasons; each is the first words of the reasons of its kind."""

    UNREADABLE = "unreadable"  # in FFmpeg's words, or those of whatever went wrong
    UNLISTED = "in the folder, but in no list"
    ENDS_EARLY = "ends early"  # before its header says so
    TOO_SMALL = "too small"
    TOO_SHORT = "too short"
    TOO_DARK = "too dark"
    TOO_BLACK = "too black"
    TOO_STATIC = "too static"
    SLIDESHOW = "too much of a slideshow"
    BORDER = "too much border"
    TOO_LITTLE_MOTION = "too little motion"
    TOO_MUCH_MOTION = "too much motion"
    SAME_CONTENT = "same content as"
    NEAR_DUPLICATE = "near duplicate"
    IN_EXCLUDED_SET = "in an excluded set"

    @classmethod
    def _missing_(cls, value: object) -> RejectReason:
        """Reads a kind of a later version as one that another try may settle."""
        return cls.UNREADABLE

    @property
    def is_lasting(self) -> bool:
        """Tells whether another try could not help; what cannot be read today may be tomorrow."""
        return self not in (self.UNREADABLE, self.UNLISTED, self.TOO_SMALL)


@dataclass(frozen=True)
class Rejected:
    """A video, or a time range of one, that is not taken: a row of the quarantine table."""

    source: str
    kind: RejectReason
    reason: str  # in full, for the user
    start_seconds: float | None = None  # None = the whole video
    end_seconds: float | None = None
    score: float | None = None  # of the filter that left it out

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Rejected:
        """Reads a row of the quarantine table."""
        return cls(**{**row, "kind": RejectReason(row["kind"])})

    @property
    def group(self) -> str:
        """What it is counted as: its kind, or the words themselves where each is of its own."""
        own = self.kind in (RejectReason.UNREADABLE, RejectReason.UNLISTED)
        return self.reason if own else self.kind.value
