from __future__ import annotations

import pytest

from data_prep.reasons import Rejected, RejectReason
from data_prep.segments.filters import FILTERS

ROW = {"source": "a", "reason": "r", "start_seconds": None, "end_seconds": None, "score": None}


def test_a_row_of_the_quarantine_reads_back_as_what_was_rejected() -> None:
    for kind in RejectReason:
        item = Rejected("a", kind, "r", 1.0, 2.0, 0.5)
        assert Rejected.of(vars(item)) == item


def test_a_kind_that_is_not_known_here_may_be_tried_again() -> None:
    item = Rejected.of({**ROW, "kind": "of a later version"})
    assert item.kind == RejectReason.UNREADABLE and not item.kind.is_lasting


@pytest.mark.parametrize("kind", RejectReason)
def test_each_decoding_error_is_counted_by_its_own_words(kind: RejectReason) -> None:
    group = Rejected.of({**ROW, "kind": kind.value}).group
    assert group == (
        "r" if kind in (RejectReason.UNREADABLE, RejectReason.UNLISTED) else kind.value
    )


def test_what_a_filter_drops_stays_dropped() -> None:
    assert all(item.kind.is_lasting for item in FILTERS)
