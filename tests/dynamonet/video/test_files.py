from __future__ import annotations

import os
from pathlib import Path

import pytest

from dynamonet.errors import UserError
from dynamonet.storage import Folder
from dynamonet.video.files import find_sources
from tests.conftest import moving_frames, write_video


def test_videos_are_found_to_any_depth_and_other_files_are_counted(tmp_path: Path) -> None:
    write_video(tmp_path / "a/b c/d.é.mp4", moving_frames(3, 32, 32))
    write_video(tmp_path / "clip.MKV", moving_frames(3, 32, 32))
    write_video(tmp_path / "x.mp4", moving_frames(3, 32, 32)).rename(tmp_path / "no_ending")
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "table.csv").write_text("a,b")
    (tmp_path / "blob").write_bytes(os.urandom(500))
    (tmp_path / "._hidden.mp4").write_bytes(b"resource fork")
    sources, others = find_sources(Folder.at(str(tmp_path)))
    assert [s.path for s in sources] == ["a/b c/d.é.mp4", "clip.MKV", "no_ending"]
    assert others == {".txt": 1, ".csv": 1, "(no ending)": 1}


def test_links_that_lead_back_are_walked_once(tmp_path: Path) -> None:
    write_video(tmp_path / "real/a.mp4", moving_frames(3, 32, 32))
    (tmp_path / "real/loop").symlink_to(tmp_path, target_is_directory=True)
    assert len(find_sources(Folder.at(str(tmp_path)))[0]) == 1


def test_a_missing_folder_is_a_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        find_sources(Folder.at(str(tmp_path / "nothing")))
