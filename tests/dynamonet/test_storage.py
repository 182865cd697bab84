from __future__ import annotations

from pathlib import Path

import pytest

from dynamonet.cluster import in_parallel
from dynamonet.errors import UserError, find_user_error
from dynamonet.storage import INCOMPLETE, Folder


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path / "set"))
    folder.create()
    folder.write("a/b.bin", b"whole")
    assert (folder.read("a/b.bin"), folder.size("a/b.bin")) == (b"whole", 5)
    with pytest.raises(ZeroDivisionError), folder.writing("a/b.bin") as path:
        path.write_bytes(b"half")
        assert folder.read("a/b.bin") == b"whole"
        raise ZeroDivisionError
    assert folder.read("a/b.bin") == b"whole"
    assert not list((tmp_path / "set" / INCOMPLETE).iterdir())


def test_what_interrupted_writers_left_is_cleared(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    (tmp_path / INCOMPLETE).mkdir()
    (tmp_path / INCOMPLETE / "x-shard.tar").write_bytes(b"half")
    folder.clear_incomplete()
    assert folder.names() == []


def test_names_lists_one_level_and_misses_are_none(tmp_path: Path) -> None:
    folder = Folder.at(str(tmp_path))
    folder.write("b", b"1")
    folder.write("sub/a", b"1")
    assert folder.names() == ["b"]
    assert folder.names("sub") == ["sub/a"]
    assert folder.names("nothing") == []
    assert folder.size("nothing") is None


def test_a_folder_that_cannot_be_written_says_why(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="cannot be written to"):
        Folder.at(str(tmp_path / "file" / "set")).create()


def test_a_read_only_folder_says_why(locked: Path) -> None:
    with pytest.raises(UserError, match="Permission denied"):
        Folder.at(str(locked / "set")).create()


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(UserError, match="not a place"):
        Folder.at("nowhere://bucket/x")


def test_a_users_mistake_is_found_inside_wrappers() -> None:
    class Wrapped(Exception):
        def __init__(self) -> None:
            self.worker_failures = {0: KeyError(), 1: UserError("fix this")}

    try:
        try:
            raise Wrapped
        except Wrapped as inner:
            raise RuntimeError from inner
    except RuntimeError as outer:
        assert str(find_user_error(outer)) == "fix this"
    assert find_user_error(ValueError()) is None


def test_a_users_mistake_in_a_task_is_told_without_the_tasks_frames(cluster: None) -> None:
    def fails() -> None:
        raise UserError("the disk is full", "Make room")

    with pytest.raises(UserError) as caught:
        list(in_parallel(fails, [()]))
    assert str(find_user_error(caught.value)) == "the disk is full. Make room"
