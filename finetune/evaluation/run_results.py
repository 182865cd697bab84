"""Measured runs of stage 3 as they lie on disk: which test videos each had right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from dynamonet.errors import UserError
from dynamonet.frozen.statistics import Outcomes, numbered
from finetune.evaluation.evaluator import PREDICTIONS
from finetune.evaluation.protocol import Protocol


@dataclass(frozen=True)
class MeasuredRuns:
    """What some runs say of the test videos."""

    sources: list[str]  # sorted
    labels: list[str]
    protocols: list[Protocol]  # of each run
    outcomes: Outcomes


def measured_runs(folders: Sequence[Path]) -> MeasuredRuns:
    """Reads the runs in some folders.

    Raises:
        UserError: a run was not measured, or its files are damaged.
    """
    label_of: dict[str, str] = {}
    group_of: dict[str, str] = {}
    runs = [_read(folder) for folder in folders]
    for folder, rows in zip(folders, runs, strict=True):
        for row in rows:
            source, label = row["source"], row["label"]
            if label_of.setdefault(source, label) != label:
                raise UserError(
                    f"{folder}: {source} is {label!r} here and {label_of[source]!r} in another of "
                    "the runs; compare runs on the same labels"
                )
            group_of[source] = row["group"]
    sources = sorted(label_of)
    place = {source: number for number, source in enumerate(sources)}
    right = np.full((len(runs), len(sources)), np.nan)
    for number, rows in enumerate(runs):
        for row in rows:
            right[number, place[row["source"]]] = row["correct"]
    protocols = [Protocol.read(folder) for folder in folders]
    splits = np.array([each.test.split for each in protocols])
    groups = numbered([group_of[source] for source in sources])
    labels = [label_of[source] for source in sources]
    return MeasuredRuns(sources, labels, protocols, Outcomes(right, splits, groups))


def _read(folder: Path) -> list[dict[str, Any]]:
    file = folder / PREDICTIONS
    if not file.is_file():
        raise UserError(
            f"{folder}: no {PREDICTIONS}; expected the folder of a finished fine-tuning run, as "
            "finetune/run.py prints it"
        )
    try:
        return pq.read_table(file, columns=["source", "label", "group", "correct"]).to_pylist()
    except (ValueError, OSError, KeyError) as error:
        raise UserError(f"{file}: damaged, or not of this program: {error}") from None
