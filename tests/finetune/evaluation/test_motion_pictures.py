from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dynamonet.model.motion_field import MotionField
from dynamonet.model.numbers import NUMBERS
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.shard_set import ShardSet
from finetune.evaluation.metrics import Predictions
from finetune.evaluation.motion_pictures import draw_fields, draw_numbers


def predicted(sources: list[str], labels: list[int], right: list[bool]) -> Predictions:
    said = [label if fine else 1 - label for label, fine in zip(labels, right, strict=True)]
    probabilities = np.where(np.eye(2)[said] > 0, 0.9, 0.1)
    count = np.ones(len(sources), int)
    return Predictions(sources, sources, np.array(labels), probabilities, count)


def test_the_numbers_that_tell_classes_apart_are_drawn() -> None:
    draw = np.random.default_rng(0)
    found = predicted([f"{n}" for n in range(20)], [n % 2 for n in range(20)], [True] * 20)
    motion = draw.normal(size=(20, len(NUMBERS)))
    motion[:, 7] += 9 * found.labels
    motion[:, 3] = 1.0  # never varies
    figure = draw_numbers(replace(found, motion=motion), ["$a", "b"])
    assert figure is not None
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[0] == f"{NUMBERS[7].name}, {NUMBERS[7].unit}" and len(set(titles)) == 6
    assert not any(title.startswith(f"{NUMBERS[3].name},") for title in titles)
    assert draw_numbers(found, ["a", "b"]) is None, "no number was measured"


def test_arrows_move_over_right_and_wrong_videos(shard_set: Path) -> None:
    shards = ShardSet.open(str(shard_set))
    rows = shards.rows(split=1, part="test").numbers()
    reader = ClipReader(shards, rows, num_frames=8, frame_px=32)
    names, labels = shards.table["source"].to_pylist(), shards.columns["label"]
    sources = [names[row] for row in rows]
    right = [number % 2 == 0 for number in range(len(rows))]
    found = predicted(sources, [int(labels[row]) for row in rows], right)

    def fields(clip: torch.Tensor) -> MotionField:
        assert clip.shape == (1, 3, 8, 32, 32)
        u = torch.zeros(1, 7, 4, 4)
        u[..., 1, 2] = 1.0
        return MotionField(u, -u, u, u)

    content = draw_fields(found, reader, shards, ["a \u4e2d", "b"], fields)
    assert content is not None
    picture = Image.open(io.BytesIO(content))
    assert getattr(picture, "n_frames", 1) == 7 and picture.format == "PNG"
    yellow = np.abs(np.asarray(picture.convert("RGB")).astype(int) - (255, 214, 10)).sum(2) < 60
    assert yellow.sum() > 20
