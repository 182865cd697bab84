"""The mapped index: shared, made anew where the set changed, and never from rows that cannot be."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamonet.errors import UserError
from dynamonet.shards import mapped
from dynamonet.shards.card import CARD
from dynamonet.shards.index import INDEX, INDEX_SCHEMA, SHARDS, SHARDS_SCHEMA
from dynamonet.shards.shard_set import ShardSet


@pytest.fixture
def copied(shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the set, and a cache of its own."""
    monkeypatch.setenv("DYNAMONET_CACHE", str(tmp_path / "cache"))
    shutil.copytree(shard_set, tmp_path / "set")
    return tmp_path / "set"


def change(folder: Path, edit: Callable[[list[dict[str, Any]]], None]) -> None:
    """Changes rows of the index as whoever gives a set away could."""
    rows = pq.read_table(folder / INDEX).to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, INDEX_SCHEMA), folder / INDEX)


def test_a_mapped_index_is_the_table_that_was_written(copied: Path) -> None:
    shards = ShardSet.open(str(copied))
    written = pq.read_table(copied / INDEX)
    assert shards.table.equals(written) and len(shards) == written.num_rows
    for number, row in enumerate(written.to_pylist()):
        assert shards.index[number]._asdict() == {key: row[key] for key in mapped.Row._fields}
    twin = pickle.loads(pickle.dumps(shards))
    assert twin.table.equals(written) and len(pickle.dumps(shards.index)) < 500
    (draws,) = next(shards.index.parts("draw"))
    sources = written["source"].to_pylist()
    drawn = shards.drawn(0.5).numbers().tolist()
    assert {sources[row] for row in drawn} == {
        name for name, draw in zip(sources, draws.tolist(), strict=True) if draw < 2**31
    }


def test_an_index_is_cut_into_parts_and_found_again(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mapped, "PART_ROWS", 5)
    shards = ShardSet.open(str(copied))
    assert [len(part) for part in shards.index._parts] == [5, 5, 2]
    keys = pq.read_table(copied / INDEX)["key"].to_pylist()
    assert [shards.index[number].key for number in range(len(shards))] == keys


def test_an_index_is_made_once_and_again_when_the_set_changed(copied: Path, tmp_path: Path) -> None:
    files = lambda: sorted((tmp_path / "cache" / "index").glob("*.arrow"))  # noqa: E731
    ShardSet.open(str(copied))
    (made,) = files()
    first = made.stat().st_ino
    ShardSet.open(str(copied))
    assert [file.stat().st_ino for file in files()] == [first]
    os.utime(copied / INDEX, (1, 1))
    os.utime(made, (2, 2))  # unused for long: it goes when another is made
    ShardSet.open(str(copied))
    assert len(files()) == 1 and files()[0] != made


HOSTILE: list[tuple[str, Any]] = [
    ("key", "../../evil"),
    ("key", ""),
    ("shard", "../../../etc/passwd.tar"),
    ("offset", -1),
    ("offset", 2**62),
    ("size", 2**40),
    ("size", 0),
    ("digest", "../../../.ssh"),
    ("source_digest", "x"),
    ("start_seconds", float("nan")),
    ("end_seconds", float("inf")),
    ("end_seconds", -1.0),
    ("frames", 0),
    ("fps", float("nan")),
    ("fps", 1e9),
    ("width", 1),
    ("height", 2**31 - 1),
    ("label", 2),
    ("label", -1),
    ("splits", []),
]


@pytest.mark.parametrize(("column", "value"), HOSTILE)
def test_a_row_that_cannot_be_is_refused_by_name(copied: Path, column: str, value: Any) -> None:
    change(copied, lambda rows: rows[7].update({column: value}))
    with pytest.raises(UserError, match=r"row 7: its .* cannot be") as caught:
        ShardSet.open(str(copied))
    assert f"{copied}/{INDEX}: damaged" in str(caught.value) and "--repair" in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (lambda rows: rows.pop(), "11 rows, 12 in the tars"),
        (lambda rows: rows.reverse(), "row 0: its shard cannot be"),
    ],
)
def test_rows_that_are_not_those_of_the_tars_are_refused(
    copied: Path, edit: Callable[[list[dict[str, Any]]], None], expected: str
) -> None:
    change(copied, edit)
    with pytest.raises(UserError, match=expected):
        ShardSet.open(str(copied))


def test_columns_of_other_types_or_without_values_are_refused(copied: Path) -> None:
    table = pq.read_table(copied / INDEX)
    text = pa.array([str(value) for value in table["offset"].to_pylist()])
    places = {name: table.schema.get_field_index(name) for name in ("offset", "size")}
    for changed, expected in (
        (table.set_column(places["offset"], "offset", text), "column offset holds string"),
        (table.drop_columns("size"), "no column size"),
        (
            table.set_column(places["size"], "size", pa.nulls(len(table), pa.int64())),
            "column size has rows without a value",
        ),
    ):
        pq.write_table(changed, copied / INDEX)
        with pytest.raises(UserError, match=expected):
            ShardSet.open(str(copied))
    (copied / INDEX).write_bytes(b"PAR1 and no more")
    with pytest.raises(UserError, match=rf"{INDEX}: damaged"):
        ShardSet.open(str(copied))
    (copied / INDEX).unlink()
    with pytest.raises(UserError, match=rf"{INDEX}: missing"):
        ShardSet.open(str(copied))


@pytest.mark.parametrize("name", ["../out.tar", "/etc/passwd", ".hidden.tar", "a/b.tar", "x"])
def test_a_tars_name_is_never_a_path(copied: Path, name: str) -> None:
    rows = pq.read_table(copied / SHARDS).to_pylist()
    rows[0]["shard"] = name
    pq.write_table(pa.Table.from_pylist(rows, SHARDS_SCHEMA), copied / SHARDS)
    with pytest.raises(UserError, match="is no name of a tar"):
        ShardSet.open(str(copied))


@pytest.mark.parametrize("digest", ["../../../.ssh", "", "0" * 31, "0" * 32 + "/..", "Z" * 32])
def test_a_cards_digest_is_never_a_path(copied: Path, digest: str) -> None:
    card = json.loads((copied / CARD).read_text())
    (copied / CARD).write_text(json.dumps({**card, "digest": digest}))
    with pytest.raises(UserError, match=rf"{CARD}: damaged: .*digest"):
        ShardSet.open(str(copied))


def test_no_cache_is_told_with_what_to_set(
    shard_set: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DYNAMONET_CACHE", str(tmp_path / "file"))
    with pytest.raises(UserError, match="set DYNAMONET_CACHE"):
        ShardSet.open(str(shard_set))
