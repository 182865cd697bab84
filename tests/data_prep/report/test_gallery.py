"""Stage 1 with shots and filters as a user runs it: scores, quarantine, galleries, old sets."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_prep import verify
from data_prep.report.gallery import SHOWN, choose
from data_prep.segments.filters import FILTERS, Filter
from data_prep.settings import FilterSettings
from data_prep.shard import main as shard
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.shard_set import ShardSet
from tests.conftest import moving_frames, write_video

SMALL = "--encode.short_side_px 32 --min_seconds 0.5 --shard_mb 0.02".split()


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kinds")
    moving, still = moving_frames(24, 48, 64), np.repeat(moving_frames(1, 48, 64), 24, 0)
    write_video(folder / "moving.mp4", moving)
    write_video(folder / "black.mp4", np.zeros((24, 48, 64, 3), np.uint8))
    write_video(folder / "frozen.mp4", still)
    write_video(folder / "two shots.mp4", np.concatenate([still // 4, 255 - moving // 4]))
    write_video(folder / "deep.mkv", moving, pix_fmt="yuv420p10le")
    return folder


@pytest.fixture(scope="module")
def filtered(videos: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("filtered")
    words = ["--source", str(videos), "--output", f"{root}/set", "--runs", f"{root}/runs"]
    shard([*words, *SMALL, "--cut", "shots"])
    return root / "set"


def test_what_filters_leave_out_is_in_quarantine_with_its_score(filtered: Path) -> None:
    found = ShardSet.open(str(filtered))
    rows = pq.read_table(filtered / "quarantine.parquet").to_pylist()
    left_out = {(r["source"], r["start_seconds"], r["reason"].split(":")[0]) for r in rows}
    assert left_out == {
        ("black.mp4", 0.0, "too black"),
        ("frozen.mp4", 0.0, "too static"),
        ("two shots.mp4", 0.0, "too static"),
    }
    assert all(row["score"] == 1 for row in rows)
    kept = {(row["source"], row["start_seconds"]) for row in found.table.to_pylist()}
    assert kept == {("moving.mp4", 0.0), ("deep.mkv", 0.0), ("two shots.mp4", 2.0)}
    counts = found.card.counts
    assert counts.videos_quarantined == {"too black": 1, "too static": 1}
    assert counts.stretches_quarantined == {"too static": 1}
    assert counts.videos_normalised == {"deep_colour": 1}
    by_source = {row["source"]: row for row in found.table.to_pylist()}
    assert by_source["deep.mkv"]["normalised"] == ["deep_colour"]
    assert all(row[name] is not None for row in by_source.values() for name in index.SCORES)


def test_such_a_set_is_checked_and_made_again_like_any_other(
    filtered: Path, videos: Path, tmp_path: Path, cluster: None
) -> None:
    verify.main([str(filtered)])
    copy = tmp_path / "set"
    shutil.copytree(filtered, copy)
    lost = sorted(copy.glob("*.tar"))[0]
    whole = lost.read_bytes()
    lost.unlink()
    verify.main([str(copy), "--repair"])
    assert lost.read_bytes() == whole
    times = {p: p.stat().st_mtime_ns for p in copy.glob("*.tar")}
    words = ["--source", str(videos), "--output", str(copy), *SMALL, "--cut", "shots"]
    shard([*words, "--retry_quarantined", "true"])  # filters would say the same again
    assert {p: p.stat().st_mtime_ns for p in copy.glob("*.tar")} == times


def test_a_threshold_is_changed_in_the_index_alone(
    filtered: Path, videos: Path, tmp_path: Path, cluster: None
) -> None:
    own = tmp_path / "set"
    shutil.copytree(filtered, own)
    times = {p: p.stat().st_mtime_ns for p in own.glob("*.tar")}
    words = ["--source", str(videos), "--output", str(own), *SMALL, "--cut", "shots"]
    before = ShardSet.open(str(own))
    shard([*words, "--filters.max_static_share", "null", "--filters.min_motion", "0.01"])
    after = ShardSet.open(str(own))
    verify.main([str(own)])
    reasons = pq.read_table(own / "quarantine.parquet")["reason"].to_pylist()
    assert sorted(reason.split(":")[0] for reason in reasons) == [
        "too black",
        *["too little motion"] * 2,
    ]
    assert len(after) == 3 and after.digest == before.digest
    assert after.card.settings["filters"]["min_motion"] == 0.01
    shard([*words, "--filters.max_static_share", "null", "--filters.max_black_share", "null"])
    assert len(ShardSet.open(str(own))) == 6
    (own / "index.parquet").unlink()
    verify.main([str(own), "--repair"])  # by the thresholds on the card
    assert len(ShardSet.open(str(own))) == 6
    assert {p: p.stat().st_mtime_ns for p in own.glob("*.tar")} == times


def test_every_filter_has_a_picture_in_the_set_and_in_the_run(filtered: Path) -> None:
    from mlflow import MlflowClient

    names = {f"{item.setting}.png" for item in FILTERS}
    assert {path.name for path in (filtered / "gallery").iterdir()} == names
    card = json.loads((filtered / "card.json").read_text())
    client = MlflowClient(card["run"]["tracking_uri"])
    logged = client.list_artifacts(card["run"]["id"], "gallery")
    assert {Path(item.path).name for item in logged} == names
    with Image.open(io.BytesIO((filtered / "gallery/max_black_share.png").read_bytes())) as sheet:
        pixels = np.asarray(sheet)
    # the black segment stands first; those kept are bright
    assert pixels[64:100, 16:80].max() < 10
    coloured = (pixels.max(2).astype(int) - pixels.min(2)) > 40
    assert coloured[100:].any()


def test_without_thresholds_everything_is_kept_with_its_scores(
    videos: Path, tmp_path: Path, cluster: None
) -> None:
    words = "--filters.max_black_share null --filters.max_static_share null".split()
    shard(["--source", str(videos), "--output", str(tmp_path / "set"), *SMALL, *words])
    found = ShardSet.open(str(tmp_path / "set"))
    scores = {row["source"]: row for row in found.table.to_pylist()}
    assert len(scores) == 5 and not found.card.counts.videos_quarantined
    assert scores["black.mp4"]["black_share"] == 1 and scores["frozen.mp4"]["static_share"] == 1
    assert scores["two shots.mp4"]["end_seconds"] == 4.0


def test_a_gallery_shows_those_nearest_to_the_threshold_and_no_more(filtered: Path) -> None:
    import pyarrow as pa

    table = ShardSet.open(str(filtered)).table
    scores = np.linspace(0, 0.5, 40)
    place = table.schema.get_field_index("static_share")
    rows = table.take([0] * 40).set_column(place, "static_share", pa.array(scores))
    beyond = pa.array([0.5 + n / 40 for n in range(1, 20)])
    left_out = rows.slice(0, 19).set_column(place, "static_share", beyond)
    item = next(item for item in FILTERS if item.setting == "max_static_share")
    assert isinstance(item, Filter)
    out, kept = choose(item, FilterSettings(max_static_share=0.5), rows, left_out).values()
    assert [s.score for s in kept] == sorted(scores, reverse=True)[:SHOWN]
    assert [s.score for s in out] == [0.5 + n / 40 for n in range(1, SHOWN + 1)]
    (spread,) = choose(item, FilterSettings(max_static_share=None), rows, None).values()
    assert len(spread) == 2 * SHOWN and (spread[0].score, spread[-1].score) == (0, 0.5)


def test_sets_of_version_1_can_be_read_and_are_not_added_to(
    filtered: Path, videos: Path, tmp_path: Path, cluster: None
) -> None:
    old = tmp_path / "old"
    shutil.copytree(filtered, old)
    card = json.loads((old / "card.json").read_text())
    for key in ("cut", "filters", "max_segments_per_video"):
        card["settings"].pop(key)
    for name in ("card.json", "records/card.json"):
        (old / name).write_text(json.dumps({**card, "version": 1}))
    table = pq.read_table(old / "index.parquet").drop_columns([*index.SCORES, "normalised"])
    pq.write_table(table, old / "index.parquet")
    opened = ShardSet.open(str(old))
    assert len(opened) == 3 and opened.columns["frames"].min() > 0
    assert not opened.frames.crop_letterbox
    for command in (
        lambda: verify.main([str(old)]),
        lambda: shard(["--source", str(videos), "--output", str(old), *SMALL]),
    ):
        with pytest.raises(UserError, match="version 1, which can be trained on; only"):
            command()
