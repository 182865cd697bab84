"""A finished model on files: windows and times, odd videos, what is written."""

from __future__ import annotations

import csv
import itertools
import json
import math
import wave
import weakref
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import av
import matplotlib.image
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from data_prep.shard import main as shard
from dynamonet.errors import SettingsError, UserError
from dynamonet.model.config import FilterConfig, ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.model.numbers import NUMBERS, RATES
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import ClipSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.measuring import Measuring
from dynamonet.training.numerics.precision import Precision
from dynamonet.video.files import find_videos
from finetune.evaluation import evaluator
from finetune.predict import main as predict
from finetune.prediction.filmstrip import Filmstrip
from finetune.prediction.predictor import (
    Predictor,
    WindowPrediction,
    _as_they_come,
    in_order,
    predict_windows,
)
from finetune.prediction.reading import Begun, CutClip, Ended, Message, cut_clips
from finetune.prediction.sliding_window import ClipCutter, WindowPlan
from finetune.prediction.videos import FilePredictions
from finetune.prediction.writers import VideoScores
from tests.conftest import REAL_DATA, moving_frames, write_video

TINY = ModelConfig(
    num_frames=8,
    frame_px=28,
    input="rgb",  # so that an untrained network tells pictures apart
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
    filters=FilterConfig(cell_px=4),
)
CLASSES = ["left", "a class with a rather long name", "$x$ [b]"]
CLIP_SECONDS = 8 / 12  # the test videos have 12 frames a second


def save_model(folder: Path, classes: list[str] | None, **clips: object) -> Path:
    """Saves a model whose classifier tells different pictures apart without having learnt."""
    torch.manual_seed(0)
    count = len(classes) if classes else None
    model = DynamoNet(TINY.model_copy(update={"num_classes": count})).eval()
    torch.nn.init.normal_(model.motion.generator.linear.weight, std=0.1)  # type: ignore[union-attr]
    if model.classifier is not None:
        torch.nn.init.normal_(model.classifier.get_parameter("heads.0.linear.weight"), std=2.0)
    facts = {"classes": classes or [], "frames": {"short_side_px": 32}}
    model.facts = {**facts, "clips": {"canvas_px": 32, **clips}}
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_model(tmp_path_factory.mktemp("model"), CLASSES))


@pytest.fixture(scope="module")
def bare_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model without a classifier."""
    return str(save_model(tmp_path_factory.mktemp("bare"), None))


def seen(model: str, *words: object) -> list[VideoScores]:
    own = ["--processes", "0", "--precision", "fp32"]
    found = predict([model, *map(str, words), *own])
    assert isinstance(found, FilePredictions)
    return found.videos


def see(model: str, *words: object) -> VideoScores:
    (video,) = seen(model, *words)
    return video


def times(video: VideoScores) -> list[tuple[float, float]]:
    return [(round(w.start_seconds, 3), round(w.end_seconds, 3)) for w in video.windows]


def probabilities(video: VideoScores) -> dict[str, float]:
    return {guess.class_name: guess.probability for guess in video.top}


# where windows lie


def test_windows_follow_each_other_and_the_last_ends_with_the_video(
    model: str, tmp_path: Path
) -> None:
    video = see(model, write_video(tmp_path / "a.mp4", moving_frames(30, 48, 64)))
    assert (video.seconds, video.frames, video.fps) == (2.5, 30, 12)
    assert (video.width, video.height) == (42, 32)
    thirds = [(0.0, 0.667), (0.667, 1.333), (1.333, 2.0), (1.833, 2.5)]
    assert times(video) == thirds and not video.notes


def test_a_window_holds_many_clips_and_windows_may_overlap_or_leave_gaps(
    model: str, tmp_path: Path
) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(60, 48, 64))
    overlapping = see(model, path, "--window_seconds", 2, "--step_seconds", 1)
    assert times(overlapping) == [(0, 2), (1, 3), (2, 4), (3, 5)]
    apart = see(model, path, "--step_seconds", 2)
    assert times(apart) == [(0, 0.667), (2, 2.667), (4, 4.667)]
    # a window of two seconds is the mean over its three clips, evenly spread over 24 frames
    clips = [see(model, path, "--step_seconds", "0.0833333").windows[i] for i in (0, 8, 16)]
    first = {g.class_name: g.probability for g in overlapping.windows[0].top}
    for name, value in first.items():
        parts = [next(g.probability for g in c.top if g.class_name == name) for c in clips]
        assert value == pytest.approx(np.mean(parts), abs=1e-5)


def test_the_whole_video_is_the_mean_of_its_windows(model: str, tmp_path: Path) -> None:
    video = see(model, write_video(tmp_path / "a.mp4", moving_frames(40, 48, 64)))
    for name, value in probabilities(video).items():
        each = [g.probability for w in video.windows for g in w.top if g.class_name == name]
        assert len(each) == len(video.windows) and value == pytest.approx(np.mean(each))
    assert sum(probabilities(video).values()) == pytest.approx(1)


def test_halves_that_differ_give_windows_that_differ(model: str, tmp_path: Path) -> None:
    still = np.repeat(np.full((1, 48, 64, 3), 200, np.uint8), 24, 0)
    frames = np.concatenate([moving_frames(24, 48, 64), still])
    video = see(model, write_video(tmp_path / "a.mp4", frames))
    values = [{g.class_name: g.probability for g in w.top} for w in video.windows]
    distance = [abs(v["left"] - values[0]["left"]) for v in values]
    assert max(distance[:3]) < 0.5 * min(distance[3:])


def test_a_stride_in_seconds_covers_the_same_time_at_any_rate(tmp_path: Path) -> None:
    place = save_model(tmp_path / "model", CLASSES, stride_seconds=0.1)
    for fps in (10, 20, 60):
        path = write_video(tmp_path / f"{fps}.mp4", moving_frames(2 * fps, 48, 64), fps=fps)
        assert see(str(place), path).windows[0].end_seconds == pytest.approx(0.75, abs=0.06)


@pytest.mark.parametrize("stride", [1.0, 1.5, 2.0, 3.3])
@pytest.mark.parametrize(("window", "step"), [(None, None), (3.1, None), (2.0, 0.7), (None, 5.0)])
def test_every_clip_of_every_window_is_cut_once_from_few_frames(
    stride: float, window: float | None, step: float | None
) -> None:
    plan = WindowPlan.of(8, stride, 12.0, window, step)
    cutter = ClipCutter(plan)
    found: dict[int, list[int]] = {}
    for number in range(300):
        clip = cutter.push(np.full((2, 2, 3), number % 256, np.uint8))
        assert len(cutter.held) <= plan.span
        if clip is not None:
            assert clip.start not in found
            found[clip.start] = clip.pixels[:, 0, 0, 0].tolist()
    windows = itertools.takewhile(lambda w: w.end <= 300, map(plan.whole, itertools.count()))
    wanted = {start for w in windows for start in w.clips}
    assert wanted <= found.keys()
    for start, values in found.items():
        offsets = [value - start % 256 for value in values]
        expected = [math.floor(i * stride + 0.5) for i in range(8)]
        assert [o % 256 for o in offsets] == expected


def test_a_long_video_streams(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # an endless source: what is held never exceeds a clip's span and a batch of clips
    predictor = Predictor(model, batch_size=4, pictures=False)
    alive, most = 0, 0

    def gone() -> None:
        nonlocal alive
        alive -= 1

    def frames() -> Iterator[np.ndarray]:
        nonlocal alive, most
        while True:
            alive, most = alive + 1, max(most, alive + 1)
            frame = np.zeros((28, 28, 3), np.uint8)
            weakref.finalize(frame, gone)
            yield frame

    batches: list[int] = []
    look = predictor.look
    monkeypatch.setattr(predictor, "look", lambda c: (batches.append(len(c)), look(c))[1])
    reading = predictor.reading()
    plan = reading.plan(12.0)

    def messages() -> Iterator[Message]:
        yield Begun(0, 12.0)
        for clip, seen in cut_clips(frames(), plan):
            yield CutClip(0, clip.start, seen, torch.from_numpy(clip.pixels))

    found = in_order(_as_they_come(predictor, messages(), reading))
    windows = [window for _, window in itertools.islice(found, 100)]
    assert isinstance(windows[-1], WindowPrediction)
    assert (windows[-1].start_seconds, windows[-1].end_seconds) == (792 / 12, 800 / 12)
    assert most <= plan.span + 2
    assert set(batches) == {4}


def test_clips_of_several_videos_go_together_and_windows_come_by_video(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lengths = [9, 70, 25, 8, 40]
    for number, frames in enumerate(lengths):
        write_video(tmp_path / f"{number}.mp4", moving_frames(frames, 48, 64, seed=number))
    (tmp_path / "3.mp4").write_bytes(b"no video")
    videos, _ = find_videos([str(tmp_path)])
    assert len(videos) == 5
    predictor = Predictor(model, batch_size=4, pictures=False, precision="fp32")
    alone = []
    for number, video in enumerate(videos):
        one = Predictor(model, batch_size=1, pictures=False, precision="fp32")
        found = predict_windows(one, [video], one.reading(None, 0.3), processes=0)
        alone += [(number, item) for _, item in found]
    sizes: list[int] = []
    look = predictor.look
    monkeypatch.setattr(predictor, "look", lambda c: (sizes.append(len(c)), look(c))[1])
    for processes in (0, 3):
        found = list(
            predict_windows(predictor, videos, predictor.reading(None, 0.3), processes=processes)
        )
        assert [number for number, _ in found] == [number for number, _ in alone]
        for (_, item), (_, other) in zip(found, alone, strict=True):
            if isinstance(item, Ended):
                assert isinstance(other, Ended) and replace(item, video=0) == other
                assert (item.failure is not None) == (item.video == 3)
                continue
            assert isinstance(other, WindowPrediction)
            assert (item.start_seconds, item.end_seconds) == (
                other.start_seconds,
                other.end_seconds,
            )
            np.testing.assert_allclose(item.seen.features, other.seen.features, atol=1e-4)
    assert sizes.count(4) >= 2 * (len(alone) // 4 - 1)  # all but the last batch are full


# the same as in evaluation


@pytest.mark.parametrize(("crf", "tolerance"), [(0, 1e-4), (23, 0.15)])
def test_files_and_their_shards_give_the_same_but_for_what_encoding_loses(
    model: str, video_folder: Path, tmp_path: Path, cluster: None, crf: int, tolerance: float
) -> None:
    more = f"--encode.short_side_px 32 --encode.crf {crf} --min_seconds 0.5 --test_share 0.4"
    words = f"--source {video_folder} --dataset folder --output {tmp_path}/set {more}"
    shard(words.split())
    shards = ShardSet.open(str(tmp_path / "set"))
    predictor = Predictor(model, batch_size=5, pictures=False, precision="fp32")
    reader = ClipReader(
        shards,
        shards.rows(),
        ClipSettings(canvas_px=32),
        num_frames=8,
        loop_short=True,
        frame_px=28,
    )
    # three clips of 8 frames fill the 24 frames of each segment, as the windows do
    known = evaluator.predict_videos(
        predictor.model,
        reader,
        replace(shards, card=shards.card.model_copy(update={"classes": tuple(CLASSES)})),
        evaluator.ViewPlan(clips=3, crops=1),
        Measuring(Rank(0, 1, torch.device("cpu")), Precision(torch.float32, "cpu"), clips=6),
    )
    found = {v.video.removeprefix(f"{video_folder}/"): v for v in seen(model, video_folder)}
    assert found.keys() == set(known.sources) and len(found) == 12
    own = np.array([[probabilities(found[s])[c] for c in CLASSES] for s in known.sources])
    assert known.probabilities.std(0).max() > 0.05  # else anything would agree
    np.testing.assert_allclose(own, known.probabilities, rtol=0, atol=tolerance)


# videos as they come


def test_variable_frame_rates_are_placed_by_time(model: str, tmp_path: Path) -> None:
    # 20 frames in the first second and 4 in the next: by counting, white would begin at 1.67 s
    black, white = np.zeros((48, 64, 3), np.uint8), np.full((48, 64, 3), 255, np.uint8)
    frames = np.stack([black] * 20 + [white] * 5)
    stamps = [*range(0, 1000, 50), 1000, 1250, 1500, 1750, 2000]
    path = write_video(tmp_path / "a.mkv", frames, times=stamps)
    step = ("--step_seconds", "0.1", "--filmstrip", tmp_path)
    video = see(model, path, *step)
    values = [w.top[0] for w in video.windows]
    changes = [
        w.start_seconds
        for w, before, after in zip(video.windows, values, values[1:], strict=False)
        if before != after
    ]
    span = video.windows[0].end_seconds
    assert video.seconds == pytest.approx(2.0, abs=0.15)
    assert min(changes) + span == pytest.approx(1.0, abs=0.2)
    assert max(changes) == pytest.approx(1.0, abs=0.2)


def test_a_lying_video_with_a_rotation_is_seen_upright(model: str, tmp_path: Path) -> None:
    frames = moving_frames(16, 64, 48)
    upright = see(model, write_video(tmp_path / "a.mp4", frames))
    lying = write_video(tmp_path / "b.mp4", np.ascontiguousarray(np.rot90(frames, 1, (1, 2))))
    with av.open(str(lying)) as source, av.open(str(tmp_path / "c.mp4"), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                target.mux(packet)
    turned = bytearray((tmp_path / "c.mp4").read_bytes())
    _turn(turned)
    (tmp_path / "c.mp4").write_bytes(turned)
    video = see(model, tmp_path / "c.mp4")
    assert (video.width, video.height) == (upright.width, upright.height) == (32, 42)
    for name, value in probabilities(upright).items():
        assert probabilities(video)[name] == pytest.approx(value, abs=0.05)


def _turn(mp4: bytearray) -> None:
    """Writes a quarter turn into the track header of an mp4."""
    one, minus = (1 << 16).to_bytes(4, "big"), (-1 << 16).to_bytes(4, "big", signed=True)
    zero, unit = bytes(4), (1 << 30).to_bytes(4, "big")
    matrix = mp4.index(b"tkhd") + 4 + 40
    mp4[matrix : matrix + 36] = b"".join([zero, one, zero, minus, zero, zero, zero, zero, unit])


@pytest.mark.parametrize(
    ("height", "width", "size"), [(38, 150, (126, 32)), (150, 38, (32, 126)), (18, 20, (20, 18))]
)
def test_odd_shapes_are_read(
    model: str, tmp_path: Path, height: int, width: int, size: tuple[int, int]
) -> None:
    path = write_video(tmp_path / "a.avi", moving_frames(9, height, width), codec="mpeg4")
    video = see(model, path)
    assert (video.width, video.height) == size and len(video.windows) == 2


@pytest.mark.parametrize("frames", [1, 5])
def test_a_video_shorter_than_a_clip_goes_round_again_and_says_so(
    model: str, tmp_path: Path, frames: int, capsys: pytest.CaptureFixture[str]
) -> None:
    video = see(model, write_video(tmp_path / "a.mp4", moving_frames(frames, 48, 64)))
    assert times(video) == [(0, round(frames / 12, 3))]
    assert f"shorter than a clip ({frames} of 8 frames)" in capsys.readouterr().out


def test_damage_is_told_and_costs_no_other_window(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {"codec": "mjpeg", "pix_fmt": "yuvj420p"}
    path = write_video(tmp_path / "a.avi", moving_frames(48, 64, 96), **words)  # type: ignore[arg-type]
    data = bytearray(path.read_bytes())
    at = data.index(b"00dc", len(data) // 2) + 8
    data[at + 700 : at + 760] = bytes(60)
    path.write_bytes(data)
    assert len(see(model, path).windows) == 6
    assert "damaged in one place, first after" in capsys.readouterr().out


@pytest.mark.real_data
def test_phone_videos_and_tags_that_are_not_utf8_are_read(model: str) -> None:
    paths = [REAL_DATA / "awkward/Kickflip75.mov", REAL_DATA / "singles/hmdb51/cartwheel"]
    phone, tagged = seen(model, *paths)
    assert (phone.width, phone.height) == (32, 56) and not phone.notes + tagged.notes
    assert phone.fps < 30 and tagged.seconds == pytest.approx(2.8, abs=0.1)


# what cannot be read


def test_what_cannot_be_read_is_told_after_all_else_is_done(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "videos"
    write_video(folder / "deep/er/good.mp4", moving_frames(9, 48, 64))
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is no video at all.\n" * 30)
    with wave.open(str(tmp_path / "sound.wav"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(8000))
    (tmp_path / "notes.txt").write_text("words\n" * 200)
    places = [folder, tmp_path / "sound.wav", tmp_path / "notes.txt", tmp_path / "gone.mp4"]
    with pytest.raises(UserError) as caught:
        seen(model, *places, "--output", tmp_path / "out.json")
    message = str(caught.value)
    assert message.startswith("5 of 6 could not be read")
    for name, why in {
        "empty.mp4": "empty file (0 bytes)",
        "text.mp4": "Invalid data found when processing input",
        "sound.wav": "no video stream (found audio)",
        "notes.txt": "text, not a video",
        "gone.mp4": "no such file or folder",
    }.items():
        assert f"{name}: {why}" in message
    assert caught.value.exit_status == 1 and "1 videos, 0:00.8, " in capsys.readouterr().out
    written = json.loads((tmp_path / "out.json").read_text())
    assert [v["video"] for v in written["videos"]] == [f"{folder}/deep/er/good.mp4"]
    assert len(written["failed"]) == 5


def test_nothing_to_read_is_an_error_that_leaves_no_file(model: str, tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"(?s)no video to read.*no video in this folder"):
        seen(model, tmp_path / "empty")
    outputs = ("--output", tmp_path / "o.csv", "--features", tmp_path / "f.parquet")
    with pytest.raises(UserError, match=r"(?s)nothing could be read.*text.mp4: Invalid data"):
        seen(model, tmp_path / "text.mp4", *outputs)
    assert {p.name for p in tmp_path.iterdir()} == {"text.mp4", "empty"}


def test_a_video_named_twice_is_read_once(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v/a.mp4", moving_frames(3, 48, 64))
    videos, failed = find_videos([str(path), str(tmp_path / "v"), "v/../v/a.mp4"])
    assert [video.name for video in videos] == [str(path)] and not failed


# what is written


def test_json_csv_and_parquet_tell_the_same(model: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "ünïcode [b] $a$.mp4", moving_frames(24, 48, 64))
    words = [path, "--top", "2", "--output"]
    video = see(model, *words, tmp_path / "o.json")
    see(model, *words, tmp_path / "o.csv")
    see(model, *words, tmp_path / "o.parquet")
    written = json.loads((tmp_path / "o.json").read_text("utf-8"))
    assert written["classes"] == CLASSES and written["failed"] == []
    (told,) = written["videos"]
    assert told["video"] == str(path) and told["frames"] == 24 and told["fps"] == 12
    assert [w["start_seconds"] for w in told["windows"]] == pytest.approx([0, 2 / 3, 4 / 3])
    rows = pq.read_table(tmp_path / "o.parquet").to_pylist()
    assert len(rows) == (3 + 1) * 2
    assert [r["scope"] for r in rows] == ["window"] * 6 + ["video"] * 2
    best = video.windows[1].top[0]
    assert (rows[2]["class_name"], rows[2]["rank"]) == (best.class_name, 1)
    assert rows[2]["probability"] == best.probability
    assert told["windows"][1]["top"][0]["probability"] == best.probability
    with (tmp_path / "o.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert [line["class_name"] for line in lines] == [row["class_name"] for row in rows]
    assert float(lines[-1]["end_seconds"]) == 2.0 and lines[0]["video"] == str(path)
    assert not list(tmp_path.glob(".incomplete*"))


def test_features_have_a_row_a_window_with_and_without_a_classifier(
    model: str, bare_model: str, tmp_path: Path
) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", moving_frames(n, 48, 64)) for n in (8, 24)]
    for place in (model, bare_model):
        file = tmp_path / "f.parquet"
        seen(place, *paths, "--features", file, "--batch_size", "2", "--overwrite")
        rows = pq.read_table(tmp_path / "f.parquet").to_pylist()
        network = DynamoNet.from_pretrained(place)
        assert [row["video"] for row in rows] == [str(paths[0])] + [str(paths[1])] * 3
        assert [row["start_seconds"] for row in rows] == pytest.approx([0, 0, 2 / 3, 4 / 3])
        assert {len(row["features"]) for row in rows} == {network.config.trunk.dim}
        assert {len(row["dmr"]) for row in rows} == {network.motion.dmr_dim}
        assert np.isfinite([row["features"] + row["dmr"] for row in rows]).all()
        # both videos begin with the same frames
        np.testing.assert_allclose(rows[0]["features"], rows[1]["features"], rtol=0.2, atol=0.05)


def test_motion_is_told_per_second_whatever_the_rate(bare_model: str, tmp_path: Path) -> None:
    frames, rows = moving_frames(24, 48, 64), []
    for rate in (12, 24):
        path = write_video(tmp_path / f"{rate}.mp4", frames, fps=rate)
        seen(bare_model, path, "--features", tmp_path / "f.parquet", "--overwrite")
        rows.append(pq.read_table(tmp_path / "f.parquet").to_pylist()[0])
    slow, fast = rows
    np.testing.assert_allclose(fast["features"], slow["features"], rtol=0.2, atol=0.02)
    for number in NUMBERS:  # one codec does not write both alike
        ratio = 2 ** RATES[number.unit]
        assert fast[number.name] == pytest.approx(slow[number.name] * ratio, rel=0.2, abs=0.02)


def test_a_model_without_a_classifier_says_what_to_do(bare_model: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", moving_frames(9, 48, 64))
    for words in ([], ["--features", "f.parquet", "--filmstrip", "x"], ["--output", "o.csv"]):
        with pytest.raises(UserError, match=r"(?s)has no classifier.*finetune/run.py.*--features"):
            seen(bare_model, path, *words)


def test_a_filmstrip_shows_windows_and_is_thinned_when_there_are_many(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = []
    draw = Filmstrip.draw

    def spy(self: object, video: VideoScores) -> object:
        drawn.append(draw(self, video))  # type: ignore[arg-type]
        return drawn[-1]

    monkeypatch.setattr(Filmstrip, "draw", spy)
    write_video(tmp_path / "a/v.mp4", moving_frames(16, 48, 64))
    write_video(tmp_path / "b/v.mp4", moving_frames(120, 48, 64))
    words = ("--step_seconds", "0.0833334", "--filmstrip", tmp_path / "strips")
    short, long = seen(model, tmp_path / "a", tmp_path / "b", *words)
    assert (len(short.windows), len(long.windows)) == (9, 113)
    shown = [[axis for axis in figure.axes if axis.get_visible()] for figure in drawn]
    assert [len(axes) for axes in shown] == [9, 24]
    labels = [axis.get_xlabel() for axis in shown[1]]
    assert "0:00.0" in labels[0] and ("0:09.9" in labels[-1] or "0:10.0" in labels[-1])
    assert all("%" in label for label in labels)
    for name in ("v.mp4.png", "v.mp4-2.png"):
        picture = matplotlib.image.imread(tmp_path / "strips" / name)
        assert picture[..., :3].std() > 0.1 and picture.shape[1] > 400


# mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "o.txt"], r"expected a name ending in \.json, \.csv, \.parquet"),
        (["--features", "f.csv"], r"ending in \.parquet"),
        (["--output", "nowhere/o.csv"], "there is no folder"),
        (["--output", "x.parquet", "--features", "x.parquet"], "give two names"),
    ],
)
def test_outputs_that_cannot_be_are_refused_first(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        predict(["no/model", "no/video", *words])


@pytest.mark.parametrize(
    "words", [["--top", "0"], ["--window_seconds", "-1"], ["--step_seconds", "soon"]]
)
def test_numbers_out_of_range_end_with_status_2(words: list[str]) -> None:
    with pytest.raises(SettingsError, match=f"{words[0]}: expected") as caught:
        predict(["model", "video", *words])
    assert caught.value.exit_status == 2


def test_class_names_must_be_as_many_as_the_classifier_knows(tmp_path: Path) -> None:
    place = save_model(tmp_path / "model", CLASSES)
    file = place / "model.json"
    file.write_text(file.read_text().replace('"left",', ""))
    with pytest.raises(UserError, match="2 class names for a classifier of 3"):
        Predictor(str(place), batch_size=1, pictures=False)


def test_many_videos_are_a_line_each_and_a_summary(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [write_video(tmp_path / f"{n}.mp4", moving_frames(n, 48, 64)) for n in (8, 24, 16)]
    seen(model, *paths)
    printed = capsys.readouterr().out
    assert len([line for line in printed.splitlines() if ".mp4  " in line]) == 3
    assert (
        "all      3 videos, 0:04.0, 6 windows; 0 could not" in printed and "likeliest " in printed
    )
    seen(model, *paths, "--output", tmp_path / "o.csv")  # tells them all
    printed = capsys.readouterr().out
    assert ".mp4  " not in printed and "all      3 videos" in printed
    seen(model, *paths, "--quiet", "--output", tmp_path / "o.csv", "--overwrite")
    assert "all      " not in capsys.readouterr().out
    with pytest.raises(UserError, match=r"o.csv: is there already; name another, or .*--overwrite"):
        seen(model, *paths, "--output", tmp_path / "o.csv")


def test_three_crops_are_averaged(model: str, tmp_path: Path) -> None:
    frames = moving_frames(8, 48, 160)
    wide = write_video(tmp_path / "wide.mp4", frames)
    (whole,) = seen(model, wide, "--crops", "3", "--precision", "fp32")
    parts = [write_video(tmp_path / f"{x}.mp4", frames[:, :, x : x + 48]) for x in (0, 56, 112)]
    apart = [probabilities(each) for each in seen(model, *parts, "--precision", "fp32")]
    mean = {name: np.mean([each[name] for each in apart]) for name in apart[0]}
    assert probabilities(whole) == pytest.approx(mean, abs=0.05)  # encoded apart
    (middle,) = seen(model, wide, "--precision", "fp32")
    assert probabilities(middle) == pytest.approx(apart[1], abs=0.05)
    frames[:, :, :112] = frames[:1, :, :112]  # only the right square moves now
    (still,) = seen(model, write_video(tmp_path / "right.mp4", frames), "--crops", "3")
    assert probabilities(still) == pytest.approx(apart[2], abs=0.1)
