"""The page about a set, as a browser would read it."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from data_prep.report.page import _columns, _histogram, write_set_page
from data_prep.shard import main as shard
from dynamonet.shards.shard_set import ShardSet
from dynamonet.storage import Folder
from tests.conftest import moving_frames, write_video

HOSTILE = '<img src=x onerror="alert(1)">'
SMALL = "--encode.short_side_px 32 --min_seconds 0.5".split()


class Page(HTMLParser):
    """Collects the tags with their attributes, and the text, of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def pictures(self) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == "img"]


@pytest.fixture(scope="module")
def hostile_set(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A labelled set whose names are markup, with a copy, a bad file and one file twice."""
    root = tmp_path_factory.mktemp("hostile")
    for number, name in enumerate((HOSTILE, "a&b")):
        for seed in range(2):
            frames = moving_frames(24, 48, 64, seed=2 * number + seed)
            write_video(root / f"videos/{name.replace('/', '')}/{seed}.mp4", frames, fps=12)
    first = root / "videos/a&b/0.mp4"
    shutil.copy(first, root / "videos/a&b/twin.mp4")
    frames = moving_frames(24, 48, 64, seed=2)[:, 2:-2, 3:-3]
    write_video(root / f"videos/a&b/{HOSTILE}.mp4", np.ascontiguousarray(frames), fps=12)
    (root / f"videos/a&b/bad{HOSTILE}.mp4").write_text("no video")
    words = ["--source", str(root / "videos"), "--output", str(root / "set"), *SMALL]
    shard([*words, "--dataset", "folder", "--runs", str(root / "runs")])
    return root / "set"


def test_the_page_needs_nothing_but_itself_and_names_are_text(hostile_set: Path) -> None:
    page = Page((hostile_set / "report.html").read_text())
    assert not [tag for tag, _ in page.tags if tag in ("script", "link", "iframe")]
    sources = [picture["src"] or "" for picture in page.pictures()]
    assert sources and all(src.startswith("data:image/jpeg;base64,") for src in sources)
    assert not [1 for _, attributes in page.tags for name in attributes if name.startswith("on")]
    assert f"bad{HOSTILE}.mp4" in page.text and "a&b" in page.text
    assert not re.search(r"https?://", (hostile_set / "report.html").read_text())


def test_the_page_says_what_the_set_holds_and_what_it_left_out(hostile_set: Path) -> None:
    page = Page((hostile_set / "report.html").read_text())
    found = ShardSet.open(str(hostile_set))
    assert found.digest in page.text and len(found) == 5
    assert "same content as a&b/0.mp4" in page.text and "5 of 7" in page.text
    assert "1 in all" in page.text  # near duplicate
    assert len(page.pictures()) == len(found) + 2
    for title in ("Length in seconds", "Frames a second", "Kilobytes a segment"):
        assert title in page.text


def test_the_page_is_an_artifact_of_the_run_and_the_same_when_written_again(
    hostile_set: Path,
) -> None:
    from mlflow import MlflowClient

    run = ShardSet.open(str(hostile_set)).card.run
    assert run is not None
    artifacts = [item.path for item in MlflowClient(run["tracking_uri"]).list_artifacts(run["id"])]
    assert "report.html" in artifacts
    before = (hostile_set / "report.html").read_text()
    assert write_set_page(Folder.at(str(hostile_set))) == before


def test_every_numeric_column_of_the_index_has_a_histogram(hostile_set: Path) -> None:
    table = ShardSet.open(str(hostile_set)).table
    scores = pa.array([0.1, None, 0.3, float("nan"), 0.5])
    columns = dict(_columns(table.append_column("sharpness", scores)))
    assert columns["sharpness"].tolist() == [0.1, 0.3, 0.5]
    made = _histogram("sharpness", columns["sharpness"])
    assert sum(count for _, count, _ in made.bars) == 3
    assert (made.least, made.median, made.most) == ("0.1", "0.3", "0.5")
    assert _histogram("empty", np.zeros(0)).bars == []


def test_a_set_whose_segments_cannot_be_read_still_has_a_page(
    hostile_set: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(hostile_set, tmp_path / "set"))
    for tar in copy.glob("*.tar"):
        tar.write_bytes(bytes(tar.stat().st_size))
    page = Page(write_set_page(Folder.at(str(copy))))
    assert not page.pictures() and "no picture" in page.text
