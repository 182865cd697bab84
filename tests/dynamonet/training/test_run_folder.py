"""Which run a start goes on with: damaged files, and file systems without locks."""

from __future__ import annotations

import errno
import fcntl
from pathlib import Path
from typing import Any

import pytest

from dynamonet.errors import UserError
from dynamonet.training.run_folder import acquire_run
from dynamonet.training.settings import TrainSettings
from tests.conftest import logged


def begun(home: Path, **settings: Any) -> str:
    with acquire_run(home, "pretrain", "set", TrainSettings(**settings), []) as (folder, _):
        return folder.name


def test_a_damaged_run_file_blocks_only_the_start_that_names_it(tmp_path: Path) -> None:
    first, second = begun(tmp_path, name="first"), begun(tmp_path, name="second", seed=1)
    (tmp_path / first / "run.json").write_text("{")
    said: list[str] = []
    with logged(said):
        assert begun(tmp_path, seed=1) == second  # resumed
        assert begun(tmp_path) not in (first, second)  # a new one
    assert "run.json: damaged" in said[0]
    with pytest.raises(UserError, match=r"run.json: damaged.*remove"):
        begun(tmp_path, name="first")


def test_a_run_that_goes_on_elsewhere_is_left_alone(tmp_path: Path) -> None:
    with acquire_run(tmp_path, "pretrain", "set", TrainSettings(name="a"), []):
        assert begun(tmp_path) != "a"
        with pytest.raises(UserError, match="going on in another process"):
            begun(tmp_path, name="a")


def test_without_locks_of_the_file_system_a_run_goes_on_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    said: list[str] = []
    with logged(said):
        assert begun(tmp_path, name="a") == begun(tmp_path) == "a"
    assert "this file system has no locks (No locks available)" in said[0]


def test_activations_may_be_computed_twice_from_some_checkpoint_on(tmp_path: Path) -> None:
    first = begun(tmp_path)
    assert begun(tmp_path, activation_checkpointing=True) == first
