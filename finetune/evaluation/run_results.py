"""Finished runs of stage 3 as they lie on disk: which test videos each had right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dynamonet.errors import UserError
from finetune.evaluation.evaluator import PREDICTIONS


@dataclass(frozen=True)
class TestedVideos:
    """Test videos, and how many of the runs that were tested on each had it right."""

    sources: list[str]  # sorted
    labels: list[str]
    right: NDArray[np.float64]  # (V,), from 0 to 1


def videos_of(folders: Sequence[Path]) -> TestedVideos:
    """Averages the runs in some folders, video by video.

    Raises:
        UserError: a run has no predictions, or they are damaged.
    """
    label_of: dict[str, str] = {}
    right: dict[str, list[bool]] = {}
    for folder in folders:
        rows = _read(folder)
        for source, label, correct in zip(*rows, strict=True):
            if label_of.setdefault(source, label) != label:
                raise UserError(
                    f"{folder}: {source} is {label!r} here and {label_of[source]!r} in another of "
                    "the runs; compare runs on the same labels"
                )
            right.setdefault(source, []).append(correct)
    sources = sorted(label_of)
    shares = np.array([np.mean(right[source]) for source in sources])
    return TestedVideos(sources, [label_of[source] for source in sources], shares)


def _read(folder: Path) -> tuple[list[str], list[str], list[bool]]:
    file = folder / PREDICTIONS
    if not file.is_file():
        raise UserError(
            f"{folder}: no {PREDICTIONS}; expected the folder of a finished fine-tuning run, as "
            "finetune/run.py prints it"
        )
    try:
        table = pq.read_table(file, columns=["source", "label", "correct"])
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{file}: damaged, or not of this program: {error}") from None
    return tuple(column.to_pylist() for column in table.columns)  # type: ignore[return-value]
