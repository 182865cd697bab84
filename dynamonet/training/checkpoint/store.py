"""The checkpoints of a run on disk: written beside the training, whole or not at all, and checked.

<run>/
  step-00000200/     model.safetensors, model.json, training.pt, state.json and
                     files.json: step, metrics, size and digest of every file; written last
  .step-00000400/    one that is growing, or that a killed run left
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dynamonet.digest import digest_of_stream
from dynamonet.errors import UserError

logger = logging.getLogger(__name__)
MANIFEST = "files.json"


def checkpoint_name(step: int) -> str:
    return f"step-{step:08d}"


@dataclass
class CheckpointStore:
    """Writes one checkpoint at a time in a thread; keeps the newest ones and the best one."""

    home: Path
    keep: int  # newest ones
    best_by: str | None = None  # metric, higher is better; None = newest ones only
    _thread: threading.Thread | None = None
    _errors: list[tuple[int, OSError]] = field(default_factory=list)

    def __enter__(self) -> CheckpointStore:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None:  # whatever ended the training, this one is wanted
            self._thread.join()

    def begin(self, step: int, write: Callable[[Path], None], metrics: dict[str, float]) -> None:
        """Begins to write a checkpoint; waits for the one before, if that is still growing.

        Args:
            write: Fills an empty folder. It runs in another thread and must hold copies only.
            metrics: What an evaluation found at this very step; empty if there was none.

        Raises:
            UserError: the one before could not be written.
        """
        self.wait()
        words = (step, write, metrics)
        self._thread = threading.Thread(target=self._write, args=words, name="checkpoint")
        self._thread.start()

    def check(self) -> None:
        """Raises the UserError of a checkpoint that could not be written; never waits."""
        if not self._errors:
            return
        step, error = self._errors[0]
        last = newest(self.home)
        stands = f"the last complete one is {last}" if last else "there is none before it"
        raise UserError(
            f"the checkpoint of step {step} cannot be written to {self.home}: "
            f"{error.strerror or error}. The training stops, as its work would be lost; {stands}. "
            "Make room or repair the disk; then run the same command again."
        )

    def wait(self) -> None:
        """Waits until nothing is being written; raises as `check`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def best(self) -> Path:
        """Returns the best checkpoint, the newest where none was measured."""
        chosen = best(self.home, self.best_by) or newest(self.home)
        assert chosen is not None
        return chosen

    def clear_incomplete(self) -> None:
        """Removes what a killed run left half-written."""
        for folder in self.home.glob(".step-*"):
            shutil.rmtree(folder, ignore_errors=True)

    def _write(self, step: int, write: Callable[[Path], None], metrics: dict[str, float]) -> None:
        growing = self.home / f".{checkpoint_name(step)}"
        try:
            shutil.rmtree(growing, ignore_errors=True)
            growing.mkdir()
            write(growing)
            _seal(growing, {"step": step, "metrics": metrics})
            final = self.home / checkpoint_name(step)
            if final.exists():  # found damaged when the run was resumed
                shutil.rmtree(final)
            growing.rename(final)
            _sync(self.home)
            self._prune()
        except OSError as error:
            self._errors.append((step, error))
            shutil.rmtree(growing, ignore_errors=True)
        except Exception as error:  # safetensors and torch wrap the system's error in their own
            self._errors.append((step, OSError(str(error))))
            shutil.rmtree(growing, ignore_errors=True)

    def _prune(self) -> None:
        folders = _all(self.home)
        kept = {*folders[: self.keep], best(self.home, self.best_by)}
        for folder in folders:
            if folder not in kept:
                shutil.rmtree(folder, ignore_errors=True)


def newest(home: Path) -> Path | None:
    """Returns the newest whole checkpoint, by name only; None where there is none."""
    return next(iter(_all(home)), None)


def newest_sound(home: Path) -> Path | None:
    """Returns the newest checkpoint whose every byte is as written; None where there is none.

    Each damaged one that is passed over is logged.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    folders = _all(home)
    for folder in folders:
        reason = damage(folder)
        if reason is None:
            return folder
        logger.warning(f"damaged  {folder.name}: {reason}; taking the checkpoint before it")
    if folders:
        raise UserError(
            f"{home}: every checkpoint is damaged. Put one back, or start again with "
            "--resume false (and another --name)."
        )
    return None


def best(home: Path, metric: str | None) -> Path | None:
    """Returns the checkpoint with the highest value of a metric; the earlier one of equals."""
    scored = []
    for folder in _all(home):
        value = read_manifest(folder).get("metrics", {}).get(metric)
        if value is not None:
            scored.append((value, folder))
    return max(reversed(scored), key=lambda item: item[0])[1] if scored else None


def damage(folder: Path) -> str | None:
    """Returns what is wrong with a checkpoint's files, or None."""
    files = read_manifest(folder).get("files")
    if not isinstance(files, dict) or not files:
        return f"{MANIFEST} is damaged"
    for name, (size, digest) in files.items():
        path = folder / Path(name).name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != size:
            return f"{name} has {path.stat().st_size:,} bytes instead of {size:,}"
        if _digest(path) != digest:
            return f"{name} is not what was written"
    return None


def read_manifest(folder: Path) -> dict[str, Any]:
    """Reads a checkpoint's list of files; an empty one where it cannot be read."""
    try:
        return dict(json.loads((folder / MANIFEST).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return {}


def _all(home: Path) -> list[Path]:
    """Returns the checkpoints, newest first."""
    return sorted((file.parent for file in home.glob(f"step-*/{MANIFEST}")), reverse=True)


def _seal(folder: Path, head: dict[str, Any]) -> None:
    files = {f.name: (f.stat().st_size, _digest(f)) for f in sorted(folder.iterdir())}
    text = json.dumps({**head, "files": files}, indent=2)
    (folder / MANIFEST).write_text(text + "\n", "utf-8")
    for file in folder.iterdir():
        _sync(file)  # the name must not outlive the bytes in a power cut


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return digest_of_stream(file)
