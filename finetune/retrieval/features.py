"""The features of an archive as arrays: a file, or a folder of parts; read, checked, scaled."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.model.numbers import NUMBERS, signed_root
from finetune.prediction.writers import (
    DIGEST_KEY,
    FEATURES_FORMAT,
    FEATURES_SCHEMA,
    FORMAT_KEY,
    MODEL_KEY,
    part_files,
)
from finetune.retrieval.knn import Rows, unit

MOTION = "motion"  # stands for the columns of the named numbers
PARTS = {
    "features": ("features",),
    "motion": (MOTION,),
    "dmr": ("dmr",),
    "both": ("features", MOTION),
}
BLOCK = 65_536  # rows that are scaled together
_ABOUT = ["video", "path", "start_seconds", "end_seconds"]
_REMEDY = f"expected what `{command('predict')} MODEL VIDEO... --features FILE` writes"


@dataclass(frozen=True)
class Scaling:
    """How values were brought to one scale, column by column; each part weighs the same."""

    mean: Rows  # (D,)
    factor: Rows  # (D,)

    @classmethod
    def of(cls, parts: list[tuple[Rows, Rows]]) -> Scaling:
        """Makes it of each part's mean and deviation, (D,) each."""
        factors = [1 / deviation / np.sqrt(max(1, len(deviation))) for _, deviation in parts]
        mean = np.concatenate([mean for mean, _ in parts])
        return cls(mean.astype(np.float32), np.concatenate(factors).astype(np.float32))

    def __call__(self, rows: Rows) -> Rows:
        """Returns rows (N, D) on that scale, of length 1."""
        return unit((rows - self.mean) * self.factor)


@dataclass(frozen=True)
class FeatureTable:
    """The windows of a file or folder of features, N in all."""

    place: Path
    files: list[Path]
    by: str  # a key of `PARTS`
    model: str
    digest: str
    videos: list[str]
    paths: list[str]
    start_seconds: np.ndarray  # (N,)
    end_seconds: np.ndarray  # (N,)

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

    @cached_property
    def scaling(self) -> Scaling:
        """The scale of these rows."""
        return self._read[1]

    @cached_property
    def rows(self) -> Rows:
        """All rows, scaled (N, D).

        Raises:
            UserError: rows of several lengths, or numbers that are not finite.
        """
        return self._read[0]

    @cached_property
    def _read(self) -> tuple[Rows, Scaling]:
        widths = {name: _width(self.files[0], name) for name in PARTS[self.by]}
        ends = [0, *accumulate(widths.values())]
        if not ends[-1]:
            raise UserError(f"--by {self.by}: the model of {self.place} has none; give another")
        rows, first = np.empty((len(self), ends[-1]), np.float32), 0
        for file in self.files:
            columns = [name for part in widths for name in columns_of(part)]
            table = pq.read_table(file, columns=[*columns, "video"])
            last = first + len(table)
            for name, (at, to) in zip(widths, pairwise(ends), strict=True):
                if to > at:
                    rows[first:last, at:to] = _matrix(self.place, table, name, to - at)
            first = last
        scaling = Scaling.of([scale_of(rows[:, at:to]) for at, to in pairwise(ends) if to > at])
        for start in range(0, len(rows), BLOCK):  # in place: there may be millions
            rows[start : start + BLOCK] = scaling(rows[start : start + BLOCK])
        return rows, scaling


def scale_of(rows: Rows) -> tuple[Rows, Rows]:
    """Returns each column's mean and deviation, (D,) each; 1 for a column that does not vary."""
    mean, square, largest = (np.zeros(rows.shape[1]) for _ in range(3))
    for start in range(0, len(rows), BLOCK):
        mean += rows[start : start + BLOCK].sum(0, dtype=np.float64) / len(rows)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK].astype(np.float64)
        square += ((block - mean) ** 2).sum(0) / len(rows)
        largest = np.maximum(largest, np.abs(block).max(0))
    deviation = np.sqrt(square)
    deviation[deviation <= 1e-6 * largest] = 1.0
    return mean.astype(np.float32), deviation.astype(np.float32)


def read_features(place: Path, by: str) -> FeatureTable:
    """Reads which windows a file or a folder of features has; their features when asked for.

    Args:
        by: A key of `PARTS`.

    Raises:
        UserError: missing, damaged, no features, of an older format or several models, or empty.
    """
    files = part_files(place) if place.is_dir() else [place]
    if not files or not place.exists():
        what = "no part-*.parquet in this folder" if place.is_dir() else "no such file"
        raise UserError(f"{place}: {what}; {_REMEDY}")
    schemas = [_schema(file) for file in files]
    facts = schemas[0].metadata
    for file, schema in zip(files, schemas, strict=True):
        if schema.metadata[DIGEST_KEY] != facts[DIGEST_KEY]:
            raise UserError(f"{file}: of another model than {files[0]}; {_REMEDY}")
    try:
        table = pa.concat_tables(pq.read_table(file, columns=_ABOUT) for file in files)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{place}: cannot be read as Parquet: {error}; {_REMEDY}") from None
    if not len(table):
        raise UserError(f"{place}: no windows in it; {_REMEDY}")
    return FeatureTable(
        place,
        files,
        by,
        facts.get(MODEL_KEY, b"").decode(),
        facts.get(DIGEST_KEY, b"").decode(),
        table["video"].to_pylist(),
        table["path"].to_pylist(),
        table["start_seconds"].to_numpy(),
        table["end_seconds"].to_numpy(),
    )


def _schema(file: Path) -> pa.Schema:
    """Returns the schema of a features file.

    Raises:
        UserError: it is none.
    """
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file}: cannot be read as Parquet: {error}; {_REMEDY}") from None
    facts = schema.metadata or {}
    if facts.get(FORMAT_KEY) != FEATURES_FORMAT.encode():
        own = set(schema.names) >= {"video", "features", "dmr"}
        why = "does not say which model made it" if own else "is no features file"
        raise UserError(f"{file}: {why}; {_REMEDY}. Files of several models are not to be joined")
    if not schema.equals(FEATURES_SCHEMA):
        raise UserError(f"{file}: other columns than a features file has; {_REMEDY}")
    return schema


def columns_of(part: str) -> tuple[str, ...]:
    """Returns the columns of a part."""
    return tuple(number.name for number in NUMBERS) if part == MOTION else (part,)


def _width(file: Path, part: str) -> int:
    """Returns how many values the first row has."""
    names = columns_of(part)
    first = next(pq.ParquetFile(file).iter_batches(1, columns=[*names])).column(0)[0]
    if part == MOTION:
        return len(names) if first.is_valid else 0
    return len(first)


def _matrix(place: Path, table: pa.Table, name: str, width: int) -> Rows:
    """Returns the values of a part (N, width); of motion their signed roots, as a classifier does.

    Raises:
        UserError: rows of several lengths, or numbers that are not finite.
    """
    if name == MOTION:
        values = [table[each].to_numpy().astype(np.float32) for each in columns_of(name)]
        rows = signed_root(np.stack(values, 1))
    else:
        column = table[name].combine_chunks()
        lengths = np.unique(column.value_lengths().to_numpy())
        if set(lengths.tolist()) - {width}:
            other = next(length for length in lengths if length != width)
            raise UserError(f"{place}: rows with {width} and {other} {name}: of different models")
        flat = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        rows = flat.reshape(len(table), width)
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        video = table["video"][int(bad[0])].as_py()
        raise UserError(
            f"{place}: {len(bad)} rows hold {name} that are not finite, the first of {video}; the "
            "model or the file is damaged"
        )
    return rows
