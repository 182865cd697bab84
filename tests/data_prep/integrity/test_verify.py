"""Checking and repairing a set, and trying again what was quarantined, on real files."""

from __future__ import annotations

import io
import json
import os
import shlex
import shutil
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import verify
from data_prep.integrity.check_set import CheckResult, check_set
from data_prep.shard import main as shard
from data_prep.shards.manifest import read_record
from dynamonet.errors import UserError, run_entry
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from tests.conftest import moving_frames, write_video

SMALL = "--encode.short_side_px 32 --min_seconds 0.5 --shard_mb 0.0025".split()


def damaged_video(good: Path, to: Path) -> Path:
    """Writes a video whose header is right and whose pictures are noise, of the same size."""
    data = bytearray(good.read_bytes())
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start : start + size] = np.random.default_rng(0).bytes(size)
    to.write_bytes(data)
    return to


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled videos with a CSV of lists elsewhere, and three that cannot be used."""
    folder = tmp_path_factory.mktemp("sources") / "with space"
    lines = ["path,label,split"]
    for number in range(8):
        frames = moving_frames(30, 48, 64, seed=200 + number)
        write_video(folder / f"{number}.mp4", frames, fps=12)
        lines.append(f"{number}.mp4,class{number % 2},{'test' if number < 3 else 'train'}")
    write_video(folder / "unlisted.mp4", moving_frames(24, 48, 64), fps=12)
    damaged_video(folder / "unlisted.mp4", folder / "noise.mp4")
    (folder / "text.mp4").write_text("words")
    lines += ["noise.mp4,class0,train", "text.mp4,class0,train", "absent.mp4,class0,train"]
    (folder.parent / "lists.csv").write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="module")
def made(videos: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("whole")
    words = ["--source", str(videos), "--output", str(root / "set"), "--runs", str(root / "runs")]
    lists = str(videos.parent / "lists.csv")
    shard([*words, "--dataset", "folder", "--lists", lists, *SMALL])
    card = json.loads((root / "set/card.json").read_text())
    assert card["counts"]["shards"] >= 4 and card["run"] and card["counts"]["samples"] == 8
    assert pq.read_table(root / "set/quarantine.parquet").num_rows >= 3
    return root / "set"


@pytest.fixture
def own(made: Path, tmp_path: Path) -> Path:
    """A copy of the set that a test may damage."""
    return Path(shutil.copytree(made, tmp_path / "own set"))


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def check(path: Path, decode: bool = True) -> CheckResult:
    return check_set(Folder.at(str(path)), decode=decode, on_progress=lambda *_: None)


def tar_of(folder: Path, number: int = 1) -> Path:
    return sorted(folder.glob("*.tar"))[number]


def rows_of(folder: Path, tar: Path) -> list[dict]:
    rows = pq.read_table(folder / "index.parquet").to_pylist()
    return [row for row in rows if row["shard"] == tar.name]


def edit_table(path: Path, edit: Callable[[list[dict]], None]) -> None:
    table = pq.read_table(path)
    rows = table.to_pylist()
    edit(rows)
    pq.write_table(pa.Table.from_pylist(rows, table.schema), path)


def edit_bytes(path: Path, edit: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    edit(data)
    path.write_bytes(data)


def repack(tar: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Writes a tar again with other member contents."""
    out = io.BytesIO()
    with tarfile.open(tar) as old, tarfile.open(fileobj=out, mode="w") as new:
        for member in old:
            content = old.extractfile(member)
            assert content
            data = change(member.name, content.read())
            member.size = len(data)
            new.addfile(member, io.BytesIO(data))
    tar.write_bytes(out.getvalue())


# each damages a set and returns (file, key, words) that a problem must name


def flip_a_byte(folder: Path) -> tuple[str, str, str]:
    tar = tar_of(folder)
    row = rows_of(folder, tar)[0]
    place = row["offset"] + row["size"] // 2
    edit_bytes(tar, lambda data: data.__setitem__(place, data[place] ^ 1))
    return tar.name, row["key"], f"expected digest {row['digest']}"


def flip_a_byte_of_padding(folder: Path) -> tuple[str, str, str]:
    tar = tar_of(folder)
    edit_bytes(tar, lambda data: data.__setitem__(-1, 1))
    return tar.name, "", "changed bytes between the samples"


def truncate(folder: Path) -> tuple[str, str, str]:
    tar = tar_of(folder)
    size = tar.stat().st_size
    edit_bytes(tar, lambda data: data.__delitem__(slice(size // 2, None)))
    return tar.name, "", f"{size} bytes"


def remove_a_tar(folder: Path) -> tuple[str, str, str]:
    tar = tar_of(folder)
    tar.unlink()
    return tar.name, "", "no such file"


def change_the_json(folder: Path) -> tuple[str, str, str]:
    tar = tar_of(folder)
    key = rows_of(folder, tar)[0]["key"]
    repack(tar, lambda name, data: data.replace(b'"frames": 30', b'"frames": 31'))
    return tar.name, key, "found frames 31 in the JSON, expected frames 30"


def put_another_tar_in_its_place(folder: Path) -> tuple[str, str, str]:
    tar, other = tar_of(folder), tar_of(folder, 2)
    key = rows_of(folder, tar)[0]["key"]
    shutil.copy(other, tar)
    return tar.name, key, "found no such sample"


def add_a_foreign_tar(folder: Path) -> tuple[str, str, str]:
    shutil.copy(tar_of(folder), folder / "shard-00077-of-00001.tar")
    return "shard-00077-of-00001.tar", "", "a tar that no table names"


def point_to_a_wrong_offset(folder: Path) -> tuple[str, str, str]:
    row = rows_of(folder, tar_of(folder))[0]
    wrong = row["offset"] + 512

    def edit(rows: list[dict]) -> None:
        next(r for r in rows if r["key"] == row["key"])["offset"] = wrong

    edit_table(folder / "index.parquet", edit)
    return "index.parquet", row["key"], f"found offset {wrong}, expected offset {row['offset']}"


def leave_out_an_index_row(folder: Path) -> tuple[str, str, str]:
    key = pq.read_table(folder / "index.parquet")["key"][0].as_py()
    edit_table(folder / "index.parquet", lambda rows: rows.__delitem__(0))
    return "index.parquet", key, "found no such sample, expected a sample"


def remove_the_index(folder: Path) -> tuple[str, str, str]:
    (folder / "index.parquet").unlink()
    return "index.parquet", "", "no such file"


def damage_the_shards_table(folder: Path) -> tuple[str, str, str]:
    name = tar_of(folder).name
    edit_table(folder / "shards.parquet", lambda rows: rows[1].update(bytes=7))
    return "shards.parquet", name, "found bytes 7"


def damage_the_quarantine_table(folder: Path) -> tuple[str, str, str]:
    edit_bytes(folder / "quarantine.parquet", lambda data: data.__delitem__(slice(0, 300)))
    return "quarantine.parquet", "", "damaged"


def change_a_quarantine_reason(folder: Path) -> tuple[str, str, str]:
    path = folder / "quarantine.parquet"
    edit_table(path, lambda rows: rows[-1].update(reason="other"))
    return "quarantine.parquet", "unlisted.mp4", "'other'"


def cut_the_card(folder: Path) -> tuple[str, str, str]:
    edit_bytes(folder / "card.json", lambda data: data.__delitem__(slice(50, None)))
    return "card.json", "", "damaged"


def change_the_cards_digest(folder: Path) -> tuple[str, str, str]:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "digest": "0" * 32}))
    return "card.json", "", f"expected digest '{card['digest']}'"


def swap_the_cards_classes(folder: Path) -> tuple[str, str, str]:
    card = json.loads((folder / "card.json").read_text())
    (folder / "card.json").write_text(json.dumps({**card, "classes": ["class1", "class0"]}))
    return "card.json", "", "found class 0 'class1', expected 'class0'"


def remove_a_record(folder: Path) -> tuple[str, str, str]:
    name = f"records/{tar_of(folder).stem}.parquet"
    (folder / name).unlink()
    return name, "", "missing or damaged"


def change_a_record(folder: Path) -> tuple[str, str, str]:
    tar = tar_of(folder)
    name, key = f"records/{tar.stem}.parquet", rows_of(folder, tar)[0]["key"]
    edit_table(folder / name, lambda rows: rows[0].update(width=7))
    return name, key, "found width 7"


def damage_the_other_records(folder: Path) -> tuple[str, str, str]:
    (folder / "records/sources.parquet").write_bytes(b"x")
    (folder / "records/settings.json").unlink()
    (folder / "records/card.json").write_text("{}")
    return "records/sources.parquet", "", "damaged"


def damage_everything_at_once(folder: Path) -> tuple[str, str, str]:
    remove_the_index(folder)
    cut_the_card(folder)
    (folder / "shards.parquet").write_bytes(b"")
    (folder / "quarantine.parquet").unlink()
    (folder / f"records/{tar_of(folder, 0).stem}.parquet").write_bytes(b"PAR1")
    return remove_a_tar(folder)


DAMAGES = [
    flip_a_byte,
    flip_a_byte_of_padding,
    truncate,
    remove_a_tar,
    change_the_json,
    put_another_tar_in_its_place,
    add_a_foreign_tar,
    point_to_a_wrong_offset,
    leave_out_an_index_row,
    remove_the_index,
    damage_the_shards_table,
    damage_the_quarantine_table,
    change_a_quarantine_reason,
    cut_the_card,
    change_the_cards_digest,
    swap_the_cards_classes,
    remove_a_record,
    change_a_record,
    damage_the_other_records,
    damage_everything_at_once,
]


def test_an_untouched_set_is_ok(made: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(made)
    verify.main([str(made)])
    printed = capsys.readouterr().out
    assert printed.rstrip().endswith("ok") and "problem:" not in printed
    found = check(made)
    assert not found.problems and not found.warnings
    assert (found.samples, found.frames) == (8, 240)
    assert check(made, decode=False).frames == 0
    verify.main([str(made), "--repair"])
    assert files(made) == before


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named_and_repaired_to_the_same_bytes(
    own: Path, made: Path, damage: Callable[[Path], tuple[str, str, str]]
) -> None:
    name, key, words = damage(own)
    found = check(own)
    hits = [p for p in found.problems if (p.where, p.key) == (name, key) and words in str(p)]
    assert hits, "\n".join(map(str, found.problems))
    times = {path: path.stat().st_mtime_ns for path in own.glob("*.tar") if path.name in found.good}
    verify.main([str(own), "--repair", "--no-decode"])
    assert files(own) == files(made)
    assert {path: path.stat().st_mtime_ns for path in times} == times  # good tars stay


def test_the_printed_command_repairs_the_set(
    own: Path, made: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    flip_a_byte(own)
    add_a_foreign_tar(own)

    def run(*words: str) -> int:
        monkeypatch.setattr(sys, "argv", ["verify.py", *words])
        with pytest.raises(SystemExit) as end:
            run_entry(verify.main)
        assert isinstance(end.value.code, int)
        return end.value.code

    assert run(str(own), "--show", "1") == 1
    printed = capsys.readouterr()
    assert "problem: shard-" in printed.out and "more; --show N" in printed.out
    command = shlex.split(printed.err.rstrip().splitlines()[-1])
    assert command == ["python", "data_prep/verify.py", str(own), "--repair"]
    assert run(*command[2:]) == 0
    assert files(own) == files(made)


def test_unknown_and_unfinished_files_are_warnings_and_stay(own: Path) -> None:
    (own / "notes.txt").write_text("mine")
    (own / "other.tar").write_bytes(b"mine")
    (own / ".incomplete").mkdir(exist_ok=True)
    (own / ".incomplete/x-shard-00000-of-00001.tar").write_bytes(b"half")
    found = check(own, decode=False)
    text = "\n".join(found.warnings)
    assert not found.problems and len(found.warnings) == 3
    assert "notes.txt" in text and "other.tar" in text and "1 unfinished" in text
    verify.main([str(own), "--repair", "--no-decode"])
    assert (own / "notes.txt").exists() and (own / "other.tar").exists()


def test_without_the_videos_tables_are_repaired_and_damaged_tars_stay(
    own: Path, made: Path, videos: Path, tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(videos.parent, tmp_path / "kept")
    videos.rename(moved)
    try:
        remove_the_index(own)
        cut_the_card(own)
        verify.main([str(own), "--repair", "--no-decode"])
        assert files(own) == files(made)
        flip_a_byte(own)
        before = files(own)
        with pytest.raises(UserError, match=r"(?s)videos of the .*missing.*Nothing was changed"):
            verify.main([str(own), "--repair"])
        assert files(own) == before
        for number in range(8):
            write_video(moved / f"{number}.mp4", moving_frames(30, 48, 64, seed=50), fps=12)
        with pytest.raises(UserError, match=r"(?s)changed \(BLAKE2b.*shard.py --source .*--lists"):
            verify.main([str(own), "--repair", "--source", str(moved)])
        assert files(own) == before
        verify.main([str(own), "--repair", "--source", str(tmp_path / "kept/with space")])
        assert check(own).good.keys() == check(made).good.keys()
        assert ShardSet.open(str(own)).digest == ShardSet.open(str(made)).digest
        card = json.loads((own / "card.json").read_text())
        assert card["settings"]["source"] == str(tmp_path / "kept/with space")
    finally:
        shutil.rmtree(moved, ignore_errors=True)
        shutil.copytree(tmp_path / "kept/with space", videos)


def test_a_run_of_stage_1_that_was_stopped_is_told_to_go_on(own: Path, made: Path) -> None:
    # tars and records of a newer run, tables and card of an older one
    tar = tar_of(own)
    tar.unlink()
    (own / f"records/{tar.stem}.parquet").unlink()
    edit_table(
        own / "index.parquet",
        lambda rows: rows.__setitem__(slice(None), [r for r in rows if r["shard"] != tar.name]),
    )
    edit_table(own / "shards.parquet", lambda rows: rows.__delitem__(1))
    before = files(own)
    with pytest.raises(
        UserError, match=r"(?s)other samples.*Run stage 1 again:\n.*--dataset folder"
    ):
        verify.main([str(own), "--repair", "--no-decode"])
    assert files(own) == before


def test_what_is_no_set_is_said_plainly(tmp_path: Path, cluster: None) -> None:
    with pytest.raises(UserError, match="no shards here"):
        verify.main([str(tmp_path / "nothing")])
    (tmp_path / "card.json").write_text("{")
    with pytest.raises(UserError, match=r"problems\. Rebuild"):
        verify.main([str(tmp_path)])
    with pytest.raises(UserError, match=r"(?s)neither card.json nor.*Nothing was changed"):
        verify.main([str(tmp_path), "--repair"])


def test_a_set_is_checked_by_its_uri(own: Path) -> None:
    name, key, _ = flip_a_byte(own)
    found = check_set(
        Folder.at(own.as_uri().replace(" ", "%20")), decode=False, on_progress=lambda *_: None
    )
    assert [(p.where, p.key) for p in found.problems] == [(name, key)]


def test_retrying_takes_what_became_good_and_leaves_the_rest(tmp_path: Path, cluster: None) -> None:
    videos, output = tmp_path / "videos", tmp_path / "set"
    for number in range(16):
        write_video(videos / f"{number}.mp4", moving_frames(28, 48, 64, seed=number), fps=12)
    damaged = {f"{number}.mp4": (videos / f"{number}.mp4").read_bytes() for number in range(3, 7)}
    for name in damaged:
        damaged_video(videos / name, videos / name)
    words = ["--source", str(videos), "--output", str(output), *SMALL, "--segment_seconds", "2"]
    words += ["--min_seconds", "1"]  # each video's last third of a second is too short
    shard(words)

    def state() -> tuple[set[str], set[str], dict[str, int]]:
        taken = set(pq.read_table(output / "index.parquet")["source"].to_pylist())
        lost = pq.read_table(output / "quarantine.parquet").to_pylist()
        bad = {row["source"] for row in lost if "too short" not in row["reason"]}
        return taken, bad, {p.name: p.stat().st_mtime_ns for p in output.glob("*.tar")}

    taken, bad, times = state()
    assert bad == damaged.keys() and len(taken) == 12
    folder = Folder.at(str(output))
    records = {name: record for name in times if (record := read_record(folder, name))}

    def tars_with(*videos: str) -> set[str]:
        lost = ((name, record.quarantine["source"].to_pylist()) for name, record in records.items())
        return {name for name, sources in lost if not set(videos).isdisjoint(sources)}

    def replace(name: str, data: bytes) -> bytes:
        """Same size and same time of change, so that nothing tells the two apart."""
        old, status = (videos / name).read_bytes(), (videos / name).stat()
        (videos / name).write_bytes(data)
        os.utime(videos / name, ns=(status.st_atime_ns, status.st_mtime_ns))
        return old

    # a good video that shares a tar with a bad one is taken over from that tar, not read again
    mended, neighbour = next(
        (video, source)
        for video in sorted(bad)
        for name in sorted(tars_with(*bad - {video}) - tars_with(video))
        for source in records[name].rows["source"].to_pylist()
        if not tars_with(source) & tars_with(video)
    )
    replace(mended, damaged[mended])
    shard(words)
    assert state() == (taken, bad, times)
    content = replace(neighbour, bytes(len((videos / neighbour).read_bytes())))
    shard([*words, "--retry_quarantined", "true"])
    replace(neighbour, content)
    taken, bad, after = state()
    assert bad == damaged.keys() - {mended} and len(taken) == 13 and neighbour in taken
    tried = tars_with(*damaged)
    changed = {name for name in after if after[name] != times.get(name)}
    records = {name: record for name in after if (record := read_record(folder, name))}
    # what it holds now is other content, and goes to other tars
    tried |= {n for n, r in records.items() if mended in r.rows["source"].to_pylist()}
    assert changed == (tried | tars_with(mended)) & after.keys()
    assert after.keys() & times.keys() - changed  # others stay as they were
    assert not check(output).problems
    fresh = [word if word != str(output) else str(tmp_path / "fresh") for word in words]
    shard(fresh)
    for name in ("index.parquet", "quarantine.parquet", *after):
        assert (output / name).read_bytes() == (tmp_path / "fresh" / name).read_bytes()
