from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamonet.errors import UserError
from dynamonet.shards.loading import batches
from dynamonet.shards.order import Request, TrainingOrder
from dynamonet.shards.reader import ClipReader, FailedBatch
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.video.decode import decode_pixels
from dynamonet.video.transforms import ClipBatch


def reader(path: Path, *, frames: int = 9, loop: bool = False, canvas: int = 32) -> ClipReader:
    shards = ShardSet.open(str(path))
    return ClipReader(
        shards,
        shards.rows(),
        ClipSettings(canvas_px=canvas),
        num_frames=frames,
        loop_short=loop,
        frame_px=round(0.875 * canvas),
    )


def walk(source: ClipReader, *, batch: int = 4, ranks: int = 1, processes: int = 0, start: int = 0):
    """Returns every rank's batches of two epochs."""
    plan = source.plan(LoaderSettings(batch_size=batch), ranks, seed=3)
    orders = [TrainingOrder(source.rows, plan, r, start, 2 * plan.steps) for r in range(ranks)]
    assert {len(order) for order in orders} == {2 * plan.steps - start}
    return [list(batches(source, o, processes=processes, prefetch=2)) for o in orders]


def flat(found: list[list[ClipBatch]]) -> list[tuple[int, bytes]]:
    """Returns (row, pixels) of every clip, step by step, ranks side by side."""
    clips = []
    for step in zip(*found, strict=True):
        for part in step:
            for row, pixels in zip(part.row, part.pixels, strict=True):
                clips.append((int(row), pixels.numpy().tobytes()))
    return clips


def test_batches_are_the_same_for_any_number_of_ranks_and_processes(shard_set: Path) -> None:
    source = reader(shard_set)
    alone = flat(walk(source))
    assert len(alone) == 24 and {row for row, _ in alone[:12]} == set(range(12))
    assert flat(walk(source, ranks=2)) == alone
    assert flat(walk(source, ranks=4)) == alone
    assert flat(walk(source, processes=2)) == alone
    assert alone[:12] != alone[12:]


def test_a_resumed_walk_is_the_rest_of_an_uninterrupted_one(shard_set: Path) -> None:
    source = reader(shard_set)
    whole = flat(walk(source))
    for step in (1, 2, 4):
        assert flat(walk(source, start=step)) == whole[4 * step :]


def test_a_batch_says_its_shapes_and_labels(shard_set: Path) -> None:
    source = reader(shard_set, canvas=64)
    (first, *_), *_ = walk(source)
    assert repr(first) == "ClipBatch(pixels=(4, 9, 56, 56, 3), label=(4,))"
    labels = ShardSet.open(str(shard_set)).columns["label"]
    assert first.label.tolist() == [labels[row] for row in first.row]


def test_evaluation_clips_are_spread_centred_and_not_mirrored(shard_set: Path) -> None:
    source = reader(shard_set, frames=4)
    found = [source[Request(0, clip=i, num_clips=3)] for i in range(3)]
    first, _, last = (clip.pixels[0].numpy() for clip in found)  # type: ignore[union-attr]
    everything = reader(shard_set, frames=24)[Request(0)].pixels[0].numpy()  # type: ignore[union-attr]
    row, tars = source.sets.find(0)
    whole = decode_pixels(tars.read(row.shard, row.offset, row.size), np.arange(24))
    left = (row.width - 32) // 2 // 2 * 2 + 2  # 28 of the middle 32 pixels, as they are
    assert (everything == whole[:, 2:30, left : left + 28]).all()
    assert (first == everything[:4]).all() and (last == everything[20:]).all()


def test_segments_shorter_than_a_clip_are_left_out_or_go_round(shard_set: Path) -> None:
    assert len(reader(shard_set, frames=24).rows) == 12
    left = reader(shard_set, frames=25)
    assert (len(left.rows), left.too_short) == (0, 12)
    looped = reader(shard_set, frames=30, loop=True)[Request(0, seed=1)]
    assert isinstance(looped, ClipBatch)
    assert (looped.pixels[0, 24] == looped.pixels[0, 0]).all()


def damaged(shard_set: Path, tmp_path: Path, rows: list[int]) -> Path:
    """Copies a set and overwrites some samples in place."""
    copy = tmp_path / "set"
    shutil.copytree(shard_set, copy)
    table = ShardSet.open(str(copy)).table.to_pylist()
    for row in rows:
        with (copy / table[row]["shard"]).open("r+b") as file:
            file.seek(table[row]["offset"] + 100)
            file.write(bytes(200))
    return copy


def test_a_damaged_sample_is_named_and_replaced_alike_everywhere(
    shard_set: Path, tmp_path: Path
) -> None:
    source = reader(damaged(shard_set, tmp_path, [5]))
    found = walk(source)
    failures = [text for part in found[0] for text in part.failures]
    key = ShardSet.open(str(shard_set)).table["key"][5].as_py()
    assert len(failures) == 2 and all(key in text and "shard-" in text for text in failures)
    assert "not what was written" in failures[0]
    assert 5 not in {row for row, _ in flat(found)}
    assert flat(walk(source, ranks=2)) == flat(found)


def test_nothing_stands_in_for_a_damaged_sample_in_evaluation(
    shard_set: Path, tmp_path: Path
) -> None:
    source = reader(damaged(shard_set, tmp_path, [5]))
    assert isinstance(source[Request(5)], FailedBatch)
    with pytest.raises(UserError, match=r"(?s)no batch can be read.*sample"):
        source[5]
    with pytest.raises(UserError, match="no batch can be read"):
        list(batches(source, [[Request(5)]], processes=0, prefetch=1))


def test_a_batch_of_which_nothing_can_be_read_is_a_users_error(
    shard_set: Path, tmp_path: Path
) -> None:
    source = reader(damaged(shard_set, tmp_path, list(range(12))))
    with pytest.raises(UserError, match=r"(?s)no batch can be read.*shard-"):
        walk(source, processes=1)


def test_a_reader_travels_to_other_processes_with_its_files_closed(shard_set: Path) -> None:
    source = reader(shard_set)
    before = source[Request(0)]
    twin = pickle.loads(pickle.dumps(source))
    assert not twin.sets.parts[0].tars._open
    after = twin[Request(0)]
    assert isinstance(before, ClipBatch) and isinstance(after, ClipBatch)
    assert torch.equal(before.pixels, after.pixels)


def test_a_missing_split_says_which_there_are(shard_set: Path) -> None:
    with pytest.raises(UserError, match=r"no split 4; this set has splits 1..1"):
        ShardSet.open(str(shard_set)).rows(split=4, part="train")


@pytest.mark.parametrize("gigabytes", [1.0, 2.4e-4])  # all of them, and two of twelve
def test_segments_kept_decoded_give_the_same_clips(shard_set: Path, gigabytes: float) -> None:
    plain = reader(shard_set)
    shards = ShardSet.open(str(shard_set))
    kept = ClipReader(
        shards,
        settings=plain.settings,
        num_frames=plain.num_frames,
        loop_short=False,
        frame_px=plain.frame_px,
        loader=LoaderSettings(decoded_gb=gigabytes),
    )
    assert flat(walk(kept)) == flat(walk(plain))
    held = sum(pixels.nbytes for pixels in kept.decoded.values())
    assert 0 < held <= 1e9 * gigabytes
    assert (len(kept.decoded) == len(shards)) == (gigabytes == 1.0)
