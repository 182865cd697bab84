"""A features file as arrays: read, checked, scaled."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamonet.commands import command
from dynamonet.errors import UserError
from finetune.prediction.writers import (
    DIGEST_KEY,
    FEATURES_FORMAT,
    FEATURES_SCHEMA,
    FORMAT_KEY,
    MODEL_KEY,
)
from finetune.retrieval.knn import Rows, scaling, unit

PARTS = {"features": ("features",), "dmr": ("dmr",), "both": ("features", "dmr")}


@dataclass(frozen=True)
class FeatureTable:
    """The windows of a features file, N in all."""

    file: Path
    model: str
    digest: str
    videos: list[str]
    paths: list[str]
    start_seconds: np.ndarray  # (N,)
    end_seconds: np.ndarray  # (N,)
    parts: list[Rows]  # (N, D) each, as the model gave them

    def __len__(self) -> int:
        return len(self.videos)

    @cached_property
    def group(self) -> np.ndarray:
        """A number for each row's video, (N,); the same path is the same video."""
        return np.unique(self.paths, return_inverse=True)[1].astype(np.int64)

    def of(self, name: str) -> np.ndarray:
        """Returns the rows of a video by its name in the file or its path; there may be none."""
        return np.flatnonzero([name in pair for pair in zip(self.videos, self.paths, strict=True)])

    def closest(self, name: str) -> str:
        """Returns a hint: the name in the file that resembles another most."""
        known = dict.fromkeys(self.videos)
        near = difflib.get_close_matches(name, known, 1, 0.5)
        ends = [other for other in known if Path(other).name == Path(name).name]
        best = (ends or near or [""])[0]
        return f"; did you mean {best}?" if best else f"; it has e.g. {self.videos[0]}"

    def scaled(self, parts: list[Rows]) -> Rows:
        """Returns rows of length 1, each part standardised by this file's mean and deviation."""
        made = []
        for rows, own in zip(parts, self.parts, strict=True):
            mean, deviation = scaling(own)
            made.append((rows - mean) / deviation / np.float32(np.sqrt(max(1, own.shape[1]))))
        return unit(np.concatenate(made, axis=1))


def read_features(file: Path, by: str) -> FeatureTable:
    """Reads a features file.

    Args:
        by: features, dmr or both.

    Raises:
        UserError: missing, damaged, no features file, of an older format or several models, empty,
            or with numbers that are not finite.
    """
    remedy = f"expected what `{command('predict')} MODEL VIDEO... --features FILE` writes"
    if not file.is_file():
        raise UserError(f"{file}: no such file; {remedy}")
    try:
        table = pq.read_table(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as Parquet: {error}; {remedy}") from None
    facts = table.schema.metadata or {}
    if facts.get(FORMAT_KEY) != FEATURES_FORMAT.encode():
        own = set(table.column_names) >= {"video", "features", "dmr"}
        why = "does not say which model made it" if own else "is no features file"
        raise UserError(f"{file}: {why}; {remedy}. Files of several models are not to be joined")
    if not table.schema.equals(FEATURES_SCHEMA):
        raise UserError(f"{file}: other columns than a features file has; {remedy}")
    if not len(table):
        raise UserError(f"{file}: no windows in it; {remedy}")
    parts = [_matrix(file, table, name) for name in PARTS[by]]
    if not any(rows.shape[1] for rows in parts):
        raise UserError(f"--by {by}: the model of {file} has none; expected --by features")
    return FeatureTable(
        file,
        facts.get(MODEL_KEY, b"").decode(),
        facts.get(DIGEST_KEY, b"").decode(),
        table["video"].to_pylist(),
        table["path"].to_pylist(),
        table["start_seconds"].to_numpy(),
        table["end_seconds"].to_numpy(),
        parts,
    )


def _matrix(file: Path, table: pa.Table, name: str) -> Rows:
    column = table[name].combine_chunks()
    lengths = np.unique(column.value_lengths().to_numpy())
    if len(lengths) != 1:
        raise UserError(
            f"{file}: rows with {lengths[0]} and {lengths[-1]} {name}: of different models"
        )
    values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    rows = values.reshape(len(table), lengths[0])
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        video = table["video"][int(bad[0])].as_py()
        raise UserError(
            f"{file}: {len(bad)} of {len(rows)} rows hold {name} that are not finite, the first "
            f"of {video}; the model or the file is damaged"
        )
    return rows
