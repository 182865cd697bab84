"""The features of an archive in parts, each of which says which videos it has."""

from __future__ import annotations

import fcntl
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynamonet.errors import UserError
from dynamonet.storage import atomic_file
from finetune.prediction.writers import DIGEST_KEY, MODEL_KEY, part_files

PART_ROWS, PART_SECONDS = 20_000, 60.0  # after so many windows, or so long, a part is written
UNITS, READING = b"dynamonet.units", b"dynamonet.reading"  # in a part's metadata


class Parts:
    """The parts of a folder of features, while a run adds to them."""

    def __init__(self, folder: Path, schema: pa.Schema) -> None:
        """Reads which videos are there.

        Raises:
            UserError: a part is damaged, or of another model or other windows.
        """
        self.folder, self.schema = folder, schema
        self.done: set[str] = set()
        self.number = 0  # of the next part
        self._rows: list[dict[str, Any]] = []
        self._units: list[str] = []
        self._since = time.monotonic()
        for file in part_files(folder):
            self.number = int(file.stem.removeprefix("part-")) + 1
            try:
                facts = dict(pq.read_schema(file).metadata or {})
                self.done |= set(json.loads(facts.pop(UNITS)))
            except (OSError, KeyError, ValueError, pa.ArrowException) as error:
                raise UserError(f"{file}: damaged: {error}; remove it, and run again") from None
            for key, what in ((DIGEST_KEY, "model"), (READING, "windows, clips or crops")):
                if facts.get(key) != schema.metadata[key]:
                    raise UserError(
                        f"{file}: made with another {what}, by {facts[MODEL_KEY].decode()}; name "
                        "another folder, or --overwrite the one that is there"
                    )

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, schema: pa.Schema, *, anew: bool) -> Iterator[Parts]:
        """Keeps other runs out of the folder; what is held is written at the end, however it comes.

        Args:
            anew: Removes the parts that are there.

        Raises:
            UserError: another run is writing, the folder cannot be made, or see `Parts`.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = (folder / ".lock").open("w")
        except OSError as error:
            raise UserError(f"--features {folder}: {error.strerror}") from None
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{folder}: another run is writing into it") from None
            for file in part_files(folder) if anew else ():
                file.unlink()
            parts = cls(folder, schema)
            try:
                yield parts
            finally:
                parts.flush()

    def add(self, unit: str, rows: list[dict[str, Any]]) -> None:
        """Takes the windows of a video that is done."""
        self.done.add(unit)
        self._units.append(unit)
        self._rows += rows
        if len(self._rows) >= PART_ROWS or time.monotonic() - self._since > PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is held as the next part."""
        if self._units:
            facts = {**self.schema.metadata, UNITS: json.dumps(self._units)}
            table = pa.Table.from_pylist(self._rows, self.schema.with_metadata(facts))
            with atomic_file(self.folder / f"part-{self.number:05d}.parquet") as growing:
                pq.write_table(table, growing, compression="zstd")
            self.number += 1
        self._rows, self._units, self._since = [], [], time.monotonic()
