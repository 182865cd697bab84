"""Where a model, a run folder or a shard set comes from: a record that travels with the files.

It stands under the key `run` in `model.json` and `card.json` and under `origin` in `run.json`, and
holds the records of its parents, so that it can be followed without a tracking store.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class DatasetUse:
    """A shard set that a run made or read; what is not known is empty."""

    name: str
    path: str = ""
    digest: str = ""
    context: str = ""  # "output", "training", "evaluation"


@dataclass(frozen=True)
class Origin:
    """A run, and what it was built on; what is not known is empty."""

    id: str
    tracking_uri: str = ""
    stage: str = ""
    name: str = ""
    folder: str = ""  # of its results
    started: str = ""  # UTC
    code: str = ""
    datasets: tuple[DatasetUse, ...] = ()
    model: str = ""  # folder of the weights that were taken over from it
    weights: str = ""  # their digest at that time
    parents: tuple[Origin, ...] = ()

    @classmethod
    def read(cls, record: Mapping[str, Any] | None) -> Origin | None:
        """Reads a record; None where there is none. Missing and unknown keys are ignored."""
        if not record or "id" not in record:
            return None
        names = {field.name for field in dataclasses.fields(cls)} - {"datasets", "parents"}
        plain = {key: str(value) for key, value in record.items() if key in names}
        parents = [cls.read(parent) for parent in record.get("parents", ())]
        return cls(
            **plain,
            datasets=tuple(DatasetUse(**use) for use in record.get("datasets", ())),
            parents=tuple(parent for parent in parents if parent is not None),
        )

    def to_json(self) -> dict[str, Any]:
        """Returns the record as it is written, without what is empty."""

        def filled(items: list[tuple[str, Any]]) -> dict[str, Any]:
            return {key: list(v) if isinstance(v, tuple) else v for key, v in items if v}

        return asdict(self, dict_factory=filled)

    def filled_from(self, other: Origin) -> Origin:
        """Returns this record with its empty places filled from another of the same run."""
        gaps = {key: value for key, value in vars(other).items() if not getattr(self, key)}
        return dataclasses.replace(self, **gaps)


def utc(seconds: float) -> str:
    """Returns a time in seconds since the epoch as text."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
