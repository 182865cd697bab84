"""Search by embeddings: the right windows come back, mistakes are named, pages hold pictures."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from dynamonet.errors import UserError
from finetune import search
from finetune.predict import main as predict
from finetune.prediction.writers import features_schema
from finetune.retrieval import index
from finetune.retrieval.features import Scaling
from finetune.retrieval.index import NearestRows, isolation
from finetune.retrieval.knn import cover, distances, unit
from tests.conftest import moving_frames, write_video
from tests.finetune.prediction.test_predict import save_model
from tests.finetune.pretrained.test_convert import foundation, resnet_state


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos, a model and its features."""
    folder = tmp_path_factory.mktemp("search")
    save_model(folder / "model", None)
    rng = np.random.default_rng(0)
    for number, name in enumerate("abc"):
        frames = np.roll(moving_frames(24, 48, 64), number, axis=2)
        write_video(folder / f"videos/<{name}>.mp4", frames)
    noise = rng.integers(0, 255, (24, 48, 64, 3), np.uint8)
    write_video(folder / "videos/noise.mp4", noise)
    run = [str(folder / "model"), str(folder / "videos")]
    predict([*run, "--features", str(folder / "f.parquet")])
    return folder


def test_distances_equal_the_naive_ones() -> None:
    rows = unit(np.random.default_rng(0).normal(size=(30, 5)).astype(np.float32))
    group = np.random.default_rng(1).permutation(np.arange(30) // 3)
    naive = np.array([[1 - a @ b for b in rows] for a in rows])
    np.testing.assert_allclose(distances(rows, rows), naive, atol=1e-6)
    wanted = [np.sort(naive[i][group != group[i]])[:4].mean() for i in range(30)]
    plain = Scaling(np.zeros(5, np.float32), np.ones(5, np.float32))
    nearest = NearestRows.exact(rows, plain)
    np.testing.assert_allclose(isolation(nearest, group, 4), wanted, atol=1e-6)
    far, found = nearest.search(rows[:2], 40, without=np.array([0, 7]))
    assert (found == -1).sum(1).tolist() == [12, 12] and np.isinf(far[found < 0]).all()
    assert not {0, 7} & set(found.ravel().tolist())
    chosen, far = cover(rows, 5, np.array([0]))
    known = [0]
    for one, distance in zip(chosen, far, strict=True):
        nearest_known = naive[known].min(0)
        assert one == nearest_known.argmax()
        assert distance == pytest.approx(nearest_known.max(), abs=1e-5)
        known.append(one)


def test_nearest_leaves_out_the_query_and_the_gallery_has_pictures(home: Path) -> None:
    words = ["nearest", str(home / "f.parquet"), "--query", str(home / "videos/<a>.mp4") + "@0.1"]
    hits = search.main([*words, "--gallery", str(home / "g.html")])
    assert (str(home / "videos/<a>.mp4"), 0.0) not in {(h.video, h.start_seconds) for h in hits}
    assert [h.distance for h in hits] == sorted(h.distance or 0 for h in hits)
    page = (home / "g.html").read_text("utf-8")
    assert page.count("data:image/jpeg") >= 2 * len(hits) and "<b>.mp4" not in page


def test_a_new_video_needs_the_model_of_the_features(home: Path, tmp_path: Path) -> None:
    new = str(write_video(tmp_path / "new.mp4", moving_frames(24, 48, 64)))
    words = ["nearest", str(home / "f.parquet"), "--query", new]
    with pytest.raises(UserError, match="give --model"):
        search.main(words)
    for part in ("both", "features", "motion", "dmr"):
        hits = search.main([*words, "--model", str(home / "model"), "--by", part])
        assert "<a>" in hits[0].video and hits[0].distance == pytest.approx(0, abs=1e-3)
    other = save_model(tmp_path / "other", ["x", "y"])
    with pytest.raises(UserError, match="not the model that made"):
        search.main([*words, "--model", str(other)])


def test_the_odd_video_is_found_and_labelled_ones_are_passed_over(home: Path) -> None:
    assert "noise" in search.main(["outliers", str(home / "f.parquet")])[0].video
    words = ["label-next", str(home / "f.parquet")]
    out = home / "l.csv"
    search.main([*words, "--budget", "2", "--output", str(out)])
    rows = list(csv.DictReader(out.open()))
    assert list(rows[0]) == ["path", "label"] and any("noise" in r["path"] for r in rows)
    out.write_text("path,label\nnoise.mp4,odd\n")
    left = search.main([*words, "--labelled", str(out), "--budget", "3"])
    assert not any("noise" in hit.video for hit in left)
    with pytest.raises(UserError, match="3 videos are not labelled yet"):
        search.main([*words, "--labelled", str(out), "--budget", "4"])


def test_what_a_person_labelled_is_never_overwritten(home: Path, tmp_path: Path) -> None:
    words = ["label-next", str(home / "f.parquet"), "--budget", "2"]
    own = tmp_path / "own.csv"
    own.write_text("path,label,note\nnoise.mp4,odd,mine\n<a>.mp4,,later\n")
    for more in ([], ["--labelled", str(home / "l.csv")]):
        with pytest.raises(UserError, match=r"own.csv: is there already; .*--overwrite"):
            search.main([*words, "--output", str(own), *more])
    search.main([*words, "--labelled", str(own), "--output", str(own)])
    rows = list(csv.DictReader(own.open()))
    assert rows[0] == {"path": "noise.mp4", "label": "odd", "note": "mine"}
    assert rows[1] == {"path": "<a>.mp4", "label": "", "note": "later"}
    assert len(rows) == len({row["path"] for row in rows}) >= 3
    assert all(row["label"] == "" for row in rows[1:])
    own.write_text("path,label\nnoise.mp4,odd,too much\n")
    with pytest.raises(UserError, match="row 2 has more values than columns"):
        search.main([*words, "--labelled", str(own), "--output", str(own)])
    assert "too much" in own.read_text()


@pytest.mark.parametrize(
    ("query", "message"), [("<a>.mpf", "did you mean|e.g."), ("videos/<a>.mp4@99", "no window")]
)
def test_a_query_that_is_not_there_is_named(home: Path, query: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        search.main(["nearest", str(home / "f.parquet"), "--query", f"{home}/{query}"])


def test_a_file_that_is_no_features_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.parquet").write_text("no")
    for name in ("x.parquet", "gone.parquet"):
        with pytest.raises(UserError, match=r"predict\.py"):
            search.main(["outliers", str(tmp_path / name)])


def test_features_of_other_people_s_networks_are_searched_too(home: Path, tmp_path: Path) -> None:
    foundation("videomae", tmp_path / "encoder")
    torch.save(resnet_state(4, (1, 1, 1, 1), 3), tmp_path / "hara.pth")
    for model, more in (("encoder", []), ("hara.pth", ["--pixel_scale", "hara_2017"])):
        file, place = tmp_path / f"{model}.parquet", str(tmp_path / model)
        predict([place, str(home / "videos"), "--features", str(file), *more])
        assert {len(dmr) for dmr in pq.read_table(file)["dmr"].to_pylist()} == {0}
        words = [str(file), "--query", str(home / "videos/<a>.mp4")]
        assert len(search.main(["nearest", *words])) > 2
        new = str(write_video(tmp_path / "new.mp4", moving_frames(24, 48, 64)))
        hits = search.main(["nearest", str(file), "--query", new, "--model", place, *more])
        assert "<a>" in hits[0].video
        for part in ("dmr", "motion"):
            with pytest.raises(UserError, match=rf"--by {part}: the model of .* has none"):
                search.main(["nearest", *words, "--by", part])
    with pytest.raises(UserError, match="not the model that made"):
        words = [str(tmp_path / "hara.pth.parquet"), "--query", new, "--model", place]
        search.main(["nearest", *words, "--pixel_scale", "hara_2020"])
    with pytest.raises(UserError, match="has no classifier"):
        predict([str(tmp_path / "encoder"), str(home / "videos")])


def test_an_index_on_disk_finds_what_all_rows_give(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(index, "EXACT", 1000)
    parts, draw = tmp_path / "parts", np.random.default_rng(0)
    parts.mkdir()
    schema = features_schema("model", "digest")

    def write(number: int) -> None:
        rows = [
            {
                "video": f"{number}-{i}",
                "path": f"/{number}-{i}.mp4",
                "start_seconds": 0.0,
                "end_seconds": 1.0,
                "features": draw.normal(size=8).astype(np.float32),
                "dmr": draw.normal(size=4).astype(np.float32),
            }
            for i in range(3000)
        ]
        table = pa.Table.from_pylist(rows, schema)
        pq.write_table(table, parts / f"part-{number:05d}.parquet")

    write(0)
    words = ["nearest", str(parts), "--query", "0-7"]
    first = search.main(words)
    assert "index    of 3,000 windows" in capsys.readouterr().out
    assert search.main(words) == first and "index    of" not in capsys.readouterr().out
    monkeypatch.setattr(index, "EXACT", 10_000)
    exact = {hit.path for hit in search.main(words)}
    assert len(exact & {hit.path for hit in first}) >= 18 and len(first) == 20
    monkeypatch.setattr(index, "EXACT", 1000)
    write(1)
    capsys.readouterr()
    assert {hit.path for hit in search.main(words)} - {f"/0-{i}.mp4" for i in range(3000)}
    assert "index    of 6,000 windows" in capsys.readouterr().out, "made again: parts were added"
    assert len(search.main(["outliers", str(parts), "--top", "5"])) == 5
