"""What the three stages share on the driver: where things lie, and which code is running."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

import dynamonet
from dynamonet.command_line import dotted, nest, read_yaml
from dynamonet.settings import S, Settings, validate
from dynamonet.storage import absolute


class ShardsRoot(Settings):
    """Where shard sets are."""

    shards_root: str | None = Field(
        default=None,
        description="Folder of all shard sets; null = $DYNAMONET_SHARDS, else ./data/shards.",
    )

    def shards_path(self, name_or_path: str) -> str:
        """Returns the absolute folder of a shard set given by bare name, path or URI."""
        if "/" in name_or_path or name_or_path.startswith("."):
            return absolute(name_or_path)
        return f"{self.shards_root_path()}/{name_or_path}"

    def shards_root_path(self) -> str:
        """Returns the absolute folder (or URI) of all shard sets."""
        return absolute(self.shards_root or os.environ.get("DYNAMONET_SHARDS") or "data/shards")


class Places(ShardsRoot):
    """Where shard sets and results are."""

    runs: str | None = Field(
        default=None, description="Folder of results; null = $DYNAMONET_RUNS, else ./runs."
    )

    def runs_path(self) -> str:
        """Returns the absolute folder (or URI) of results."""
        return absolute(self.runs or os.environ.get("DYNAMONET_RUNS") or "runs")


class StageSettings(Places):
    """What each stage's settings begin with."""

    name: str | None = Field(
        default=None,
        description="Name of this run; null = made from the stage's subject and the time.",
    )
    experiment: str = Field(
        default="dynamonet", description="MLflow experiment that the run belongs to."
    )

    @classmethod
    def from_config(cls: type[S], name_or_file: str, **changes: Any) -> S:
        """Returns the settings in a YAML file, with changes.

        Args:
            name_or_file: A path, or a name in `configs/`, as `--config` takes it.
            changes: Values by key; those of a section as a dict: `optimizer={"lr": 0.001}`.

        Raises:
            SettingsError: no such file, an unknown key, or a value that is out of range.
        """
        assert cls.configs is not None
        values = dotted(read_yaml(name_or_file, cls.configs)) | dotted(changes)
        return validate(cls, nest(values), origin=name_or_file)

    @field_validator("name")
    @classmethod
    def _plain_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,99}", value):
            raise ValueError("expected letters, digits, '.', '_' and '-', at most 100")
        return value


def code_version() -> str:
    """Returns the version of the code: package version, git commit, `+changes` if uncommitted."""
    root = Path(dynamonet.__file__).resolve().parent.parent
    commit = _git(root, "rev-parse", "--short=12", "HEAD")
    if commit is None:
        return dynamonet.__version__
    changed = "+changes" if _git(root, "status", "--porcelain", "--untracked-files=no") else ""
    return f"{dynamonet.__version__} {commit}{changed}"


def _git(root: Path, *words: str) -> str | None:
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(["git", *words], cwd=root, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
