from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import av
import torch

from demo.motion_videos import CLASSES, render_motion, write_motion_videos


def test_the_set_is_real_video_with_a_table_of_labels_and_splits(tmp_path: Path) -> None:
    write_motion_videos(tmp_path, train_videos=18, test_videos=9, num_frames=6, size_px=32)
    with (tmp_path / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert Counter(row["split"] for row in rows) == {"train": 18, "test": 9}
    assert Counter(row["label"] for row in rows) == dict.fromkeys(CLASSES, 3)
    for row in rows:
        with av.open(str(tmp_path / row["path"])) as container:
            stream = container.streams.video[0]
            assert (stream.width, stream.height, stream.average_rate) == (32, 32, 12)
            assert sum(1 for _ in container.decode(stream)) == 6


def test_rendering_is_reproducible_and_differs_between_seeds() -> None:
    labels = torch.arange(9)
    one, twin = (render_motion(labels, seed=1, num_frames=4) for _ in range(2))
    assert torch.equal(one, twin)
    assert not torch.equal(one, render_motion(labels, seed=2, num_frames=4))
    assert one.shape == (9, 4, 3, 64, 64) and one.dtype == torch.uint8


def test_the_class_is_in_the_motion_and_not_in_a_frame() -> None:
    # the same seed renders the same appearance for every class: only the motion differs
    videos = {
        name: render_motion(torch.tensor([CLASSES.index(name)]), seed=5, num_frames=9)[0].float()
        for name in ("left", "right", "clockwise")
    }
    middle = [video[4] for video in videos.values()]
    assert (middle[0] - middle[1]).abs().mean() < 3
    assert (middle[0] - middle[2]).abs().mean() < 3
    first = [video[0] for video in videos.values()]
    assert (first[0] - first[1]).abs().mean() > 8
