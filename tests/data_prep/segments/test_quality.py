"""Scores, filters and shots of segments, by videos made to have them."""

from __future__ import annotations

import itertools
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from data_prep.reasons import Rejected
from data_prep.segments.filters import FILTERS, Filter, sift
from data_prep.segments.quality import Scorer
from data_prep.segments.transcode import Segment
from data_prep.settings import EncodeSettings, FilterSettings
from data_prep.shard import main as shard
from dynamonet.errors import UserError
from dynamonet.shards import index
from tests.conftest import moving_frames, write_video
from tests.data_prep.segments.test_transcode import SMALL, cut, pictures, segments

Pixels = NDArray[np.uint8]
SEED = iter(range(10**6))


def scores(tmp_path: Path, frames: Pixels, fps: int = 12) -> dict[str, float]:
    path = write_video(tmp_path / f"{next(SEED)}.mp4", frames, fps=fps)
    (found,) = segments(path)
    assert found.scores.keys() == set(index.SCORES)
    assert all(0 <= value <= 1 for value in found.scores.values())
    return found.scores


def flat(count: int, level: int) -> Pixels:
    return np.full((count, 48, 64, 3), level, np.uint8)


def still(count: int, seed: int = 0) -> Pixels:
    return np.repeat(moving_frames(1, 48, 64, seed), count, 0)


def shot(count: int, seed: int = 0) -> Pixels:
    """Returns frames that move as films do: a little from one to the next."""
    picture = moving_frames(1, 48, 64, seed)[0].repeat(3, 0).repeat(3, 1)
    return np.stack([np.roll(picture, n, axis=1)[:96, :128] for n in range(count)])


def test_black_and_brightness(tmp_path: Path) -> None:
    assert scores(tmp_path, flat(24, 0))["brightness"] == pytest.approx(0, abs=0.01)
    assert scores(tmp_path, flat(24, 255))["brightness"] == pytest.approx(1, abs=0.01)
    half = scores(tmp_path, np.concatenate([flat(24, 0), still(24)]))
    assert half["black_share"] == pytest.approx(0.5, abs=0.05)
    assert scores(tmp_path, flat(24, 0))["black_share"] == 1
    assert scores(tmp_path, still(24))["black_share"] == 0


def test_what_stands_still_and_what_moves(tmp_path: Path) -> None:
    frozen, moving = scores(tmp_path, still(36)), scores(tmp_path, moving_frames(36, 48, 64))
    assert frozen["static_share"] == 1 and frozen["motion"] < 0.005
    assert moving["static_share"] == 0 and moving["motion"] > 0.1
    half = scores(tmp_path, np.concatenate([moving_frames(24, 48, 64), still(24)]))
    assert 0.4 < half["static_share"] < 0.6
    slow = np.repeat(moving_frames(12, 48, 64), 3, 0)  # the picture moves every third frame
    assert scores(tmp_path, slow, fps=24)["static_share"] == 0


def test_a_slideshow_is_still_and_jumps(tmp_path: Path) -> None:
    slides = np.concatenate([still(24, seed) for seed in range(4)])
    assert scores(tmp_path, slides)["slideshow"] > 0.85
    assert scores(tmp_path, still(36))["slideshow"] == 0  # one picture is no slideshow
    assert scores(tmp_path, moving_frames(36, 48, 64))["slideshow"] < 0.1


def test_borders_are_a_share_of_the_picture(tmp_path: Path) -> None:
    frames = moving_frames(24, 48, 64)
    assert scores(tmp_path, frames)["border_share"] < 0.02
    frames[:, :12] = frames[:, -12:] = 0
    assert scores(tmp_path, frames)["border_share"] == pytest.approx(0.5, abs=0.07)
    frames = moving_frames(24, 48, 64)
    frames[:, :20] = 0  # a night sky
    assert scores(tmp_path, frames)["border_share"] < 0.02


def test_scores_do_not_hang_on_the_frame_rate(tmp_path: Path) -> None:
    frames = moving_frames(24, 48, 64)
    slow, fast = scores(tmp_path, frames), scores(tmp_path, np.repeat(frames, 2, 0), fps=24)
    for name, value in slow.items():
        assert fast[name] == pytest.approx(value, abs=0.06), name


def test_scores_agree_with_plain_formulas() -> None:
    import av

    rng = np.random.default_rng(0)
    luma = rng.integers(16, 236, (9, 16, 16), dtype=np.uint8)
    scorer = Scorer(Fraction(4))  # every frame is looked at
    for picture in luma:
        yuv = np.concatenate([picture.ravel(), np.full(128, 128, np.uint8)]).reshape(24, 16)
        scorer.add(av.VideoFrame.from_ndarray(yuv, format="yuv420p"))
    found, light = scorer.scores(), (luma.astype(float) - 16) / 219
    assert found["brightness"] == pytest.approx(light.mean(), abs=1e-4)
    assert found["motion"] == pytest.approx(np.abs(np.diff(light, axis=0)).mean(), abs=1e-4)


def test_the_shortest_segment_has_scores_too(tmp_path: Path) -> None:
    assert scores(tmp_path, still(2))["static_share"] == 1
    assert scores(tmp_path, moving_frames(2, 48, 64))["motion"] > 0.02


@pytest.mark.parametrize("item", FILTERS, ids=lambda item: item.setting)
def test_each_filter_drops_beyond_its_threshold_and_keeps_what_lies_on_it(item: Filter) -> None:
    all_off = dict.fromkeys(FilterSettings.model_fields)
    settings = FilterSettings(**{**all_off, item.setting: 0.5})  # type: ignore[arg-type]
    beyond = 0.51 if item.setting.startswith("max_") else 0.49
    rows = rows_of(dict.fromkeys(index.SCORES, 0.5), {item.score: beyond})
    assert sift(rows, FilterSettings(**all_off)) == (rows, {})  # type: ignore[arg-type]
    kept, left_out = sift(rows, settings)
    assert kept["key"].to_pylist() == ["0"] and left_out.keys() == {item}
    (row,) = left_out[item].to_pylist()
    found = item.rejected(row, settings)
    assert (found.source, found.start_seconds, found.end_seconds) == ("1.mp4", 0.0, 1.0)
    assert found.score == beyond and found.kind == item.kind and item.kind.is_lasting
    assert found.reason == f"{item.kind.value}: {beyond}, filters.{item.setting} is 0.5"


def rows_of(*scores: dict[str, float]) -> pa.Table:
    """Returns rows of the index, each with the scores of the first where it has none."""
    plain = {"shard": "", "offset": 0, "size": 0, "digest": "", "source_digest": "", "splits": []}
    plain |= {"start_seconds": 0.0, "end_seconds": 1.0, "frames": 1, "fps": 1.0, "width": 1}
    plain |= {"height": 1, "normalised": [], **scores[0]}
    rows = [{**plain, "key": f"{n}", "source": f"{n}.mp4", **s} for n, s in enumerate(scores)]
    return pa.Table.from_pylist(rows, index.INDEX_SCHEMA)


def test_what_several_filters_leave_out_is_the_first_ones() -> None:
    fine: dict[str, float] = dict.fromkeys(index.SCORES, 0.5)
    rows = rows_of(fine, {"black_share": 1.0, "static_share": 1.0}, {"static_share": 1.0})
    kept, left_out = sift(rows, FilterSettings())
    assert kept["key"].to_pylist() == ["0"]
    assert {item.score: t["key"].to_pylist() for item, t in left_out.items()} == {
        "black_share": ["1"],
        "static_share": ["2"],
    }


def test_by_default_only_black_and_frozen_segments_go(tmp_path: Path) -> None:
    def reasons(frames: Pixels) -> list[str]:
        (segment,) = segments(write_video(tmp_path / f"{next(SEED)}.mp4", frames))
        left_out = sift(rows_of(segment.scores), FilterSettings())[1]
        return [item.setting for item, rows in left_out.items() if len(rows)]

    assert reasons(flat(24, 0)) == ["max_black_share"]
    assert reasons(still(24)) == ["max_static_share"]
    slides = np.concatenate([still(12, seed) for seed in range(3)])
    for frames in (moving_frames(24, 48, 64), flat(24, 0) + moving_frames(24, 48, 64) // 8, slides):
        assert not reasons(frames)


def test_no_scene_cut_falls_inside_a_segment(tmp_path: Path) -> None:
    # a cut right after the first frame and one right before the last, and shots of all lengths
    lengths = (1, 29, 4, 20, 40, 1)
    shots = [shot(n, seed) for seed, n in enumerate(lengths)]
    path = write_video(tmp_path / "a.mp4", np.concatenate(shots), fps=12)
    found = cut(path, seconds=2.0, least=0.5, cut="shots")
    ends = [(i.start_seconds or 0.0, i.end_seconds or 0.0) for i in found]
    spans = [(round(start * 12), round(end * 12)) for start, end in ends]
    cuts = np.cumsum(lengths)[:-1].tolist()
    assert spans[0][0] == 0 and spans[-1][1] == 95
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))  # nothing is lost
    for at in cuts:
        assert all(not start < at < end for start, end in spans), (at, spans)
    assert max(end - start for start, end in spans) == 24  # long shots are cut as ever
    short = [item.reason for item in found if isinstance(item, Rejected)]
    assert [reason.split(",")[0] for reason in short] == [
        "one frame only",
        "too short: 0.42 s",
        "too short: 0.33 s",
        "one frame only",
    ]


def test_motion_is_no_scene_cut_and_fixed_cuts_pass_over_them(tmp_path: Path) -> None:
    frames = moving_frames(72, 48, 64)
    fast = np.stack([np.roll(frames[0], 9 * t, axis=1) for t in range(72)])
    for number, picture in enumerate((frames, fast)):
        path = write_video(tmp_path / f"{number}.mp4", picture)
        assert [s.frames for s in segments(path, cut="shots")] == [72]
    two = np.concatenate([shot(36), shot(36, seed=1)])
    path = write_video(tmp_path / "two.mp4", two)
    assert [s.frames for s in segments(path)] == [72]
    assert [s.frames for s in segments(path, cut="shots")] == [36, 36]


def test_shots_come_out_alike_from_one_pass_and_hold_the_right_frames(tmp_path: Path) -> None:
    two = np.concatenate([flat(20, 40), flat(20, 220)])
    path = write_video(tmp_path / "a.mp4", two)
    dark, bright = segments(path, cut="shots")
    assert pictures(dark.data).max() < 100 < pictures(bright.data).min()
    assert [s.data for s in segments(path, cut="shots")] == [dark.data, bright.data]


def test_a_stretch_gives_at_most_so_many_segments(tmp_path: Path) -> None:
    shots = [shot(n, seed) for seed, n in enumerate((3, 20, 20, 20))]
    path = write_video(tmp_path / "a.mp4", np.concatenate(shots), fps=12)
    found = cut(path, seconds=2.0, least=0.5, most=2, cut="shots")  # the short one is none
    assert [type(item) for item in found] == [Rejected, Segment, Segment]


def test_letterbox_is_cut_off_where_that_is_asked_for(tmp_path: Path) -> None:
    frames = np.pad(moving_frames(24, 48, 96), ((0, 0), (16, 16), (0, 0), (0, 0)))
    path = write_video(tmp_path / "a.mp4", frames)
    (whole,), (inner,) = segments(path), segments(path, encode=CROPPED)
    assert (whole.width, whole.height) == (38, 32) and whole.scores["border_share"] > 0.3
    assert (inner.width, inner.height) == (64, 32) and inner.scores["border_share"] < 0.05
    assert inner.normalised == ("letterbox",) and whole.normalised == ()


CROPPED = EncodeSettings(**{**SMALL.model_dump(), "crop_letterbox": True})


def test_shots_without_the_package_name_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    monkeypatch.delitem(sys.modules, "scenedetect.detectors", raising=False)
    with pytest.raises(UserError, match=r"(?s)pip install 'dynamonet\[shots\]'.*--cut fixed"):
        shard(["--source", str(tmp_path), "--cut", "shots"])
