from __future__ import annotations

from pathlib import Path

import av
import torch

from demo.rendered_videos import render_scenes, write_rendered_videos


def test_scenes_are_reproducible_differ_and_move() -> None:
    before = torch.random.get_rng_state()
    one, twin = (render_scenes(6, seed=3, num_frames=5, size_px=32) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert one.shape == (6, 5, 3, 32, 32) and one.dtype == torch.uint8
    assert torch.equal(one, twin)
    assert not torch.equal(one, render_scenes(6, seed=4, num_frames=5, size_px=32))
    changes = one.float().diff(dim=1).abs()
    assert (changes.amax((1, 2, 3, 4)) > 30).all()  # something moves in each
    assert changes.mean() < 40


def test_as_many_videos_as_asked_for_are_written(tmp_path: Path) -> None:
    write_rendered_videos(tmp_path / "videos", videos=3, num_frames=6, size_px=32)
    files = sorted((tmp_path / "videos").iterdir())
    assert [file.name for file in files] == ["00000.mp4", "00001.mp4", "00002.mp4"]
    with av.open(str(files[2])) as container:
        assert sum(1 for _ in container.decode(video=0)) == 6
