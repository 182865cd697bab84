"""The data-set card: what is written reads back, what is damaged is told from what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dynamonet.errors import UserError
from dynamonet.shards.card import (
    CARD,
    CARD_COPY,
    Card,
    Counts,
    DamagedCardError,
    ExcludedSet,
    read_card,
    readable_cards,
    write_card,
)
from dynamonet.storage import Folder

FULL = Card(
    digest="0" * 32,
    settings={"lists": None, "encode": {"crf": 23}},
    excluded=(ExcludedSet(name="tests", path="/sets/tests", digest="1" * 32),),
    classes=("left", "right"),
    counts=Counts(samples=3, videos_quarantined={"too short": 1}),
    run={"id": "2" * 32},
)


def test_a_card_reads_back_as_it_was_written(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    for card in (FULL, Card(digest="3" * 32)):
        write_card(folder, card)
        assert read_card(folder) == card == read_card(folder, CARD_COPY)
        assert list(readable_cards(folder)) == [card, card]
    assert "run" not in json.loads((tmp_path / CARD).read_text())


@pytest.mark.parametrize(
    "change",
    [{"classes": 7}, {"counts": {"samples": "many"}}, {"digest": None}, {"excluded": [{}]}],
)
def test_a_card_with_values_of_other_types_is_damaged(
    change: dict[str, object], tmp_path: Path
) -> None:
    folder = Folder.at(str(tmp_path))
    write_card(folder, FULL)
    values = json.loads((tmp_path / CARD).read_text())
    (tmp_path / CARD).write_text(json.dumps({**values, **change}))
    with pytest.raises(DamagedCardError, match=r"(?s)card.json: damaged: .*Repair it with\n  py"):
        read_card(folder)
    assert list(readable_cards(folder)) == [FULL]  # its copy


def test_a_card_of_an_older_version_is_read_and_not_added_to(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    old = {"format": "dynamonet-shards", "version": 1, "digest": "4" * 32, "counts": {}, "more": 1}
    (tmp_path / CARD).write_text(json.dumps(old))
    card = read_card(folder)
    assert card.counts.near_duplicates == 0 and card.classes == ()
    with pytest.raises(UserError, match=r"version 1, which can be trained on; only .*\(unknown\)"):
        card.check_current(folder)


def test_no_card_is_not_a_damaged_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no shards here") as caught:
        read_card(Folder.at(str(tmp_path)))
    assert not isinstance(caught.value, DamagedCardError)
    assert caught.value.remedy.startswith("Make them with\n  python data_prep/shard.py")
