"""Which source videos a model was trained on: a file that travels with its weights.

It lies in a run's folder, where its checkpoints find it, and beside the finished weights, and holds
the first 64 bits of each source file's digest, its parents' included, sorted: 8 bytes a
video. Two of a million videos and ten thousand test videos agree by chance once in 2 billion.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.storage import atomic_file

FILE = "trained_on.npz"
Digests = NDArray[np.uint64]


def shortened(digests: Iterable[str]) -> Digests:
    """Returns the first 64 bits of each digest in hex, in their order."""
    return np.array([int(digest[:16], 16) for digest in digests], np.uint64)


@dataclass(frozen=True)
class TrainedOn:
    """The source videos that a model has learnt from."""

    digests: Digests  # sorted, each once
    complete: bool  # no: it began with weights of which that is not known

    @classmethod
    def of(cls, digests: Iterable[str]) -> TrainedOn:
        return cls(np.unique(shortened(digests)), True)

    @classmethod
    def unknown(cls) -> TrainedOn:
        return cls(np.zeros(0, np.uint64), False)

    def __or__(self, other: TrainedOn) -> TrainedOn:
        """Returns the videos of both."""
        both = np.union1d(self.digests, other.digests)
        return TrainedOn(both, self.complete and other.complete)

    def has(self, digests: Iterable[str]) -> NDArray[np.bool_]:
        """Tells of each digest in hex (N,) whether it is among these."""
        return np.isin(shortened(digests), self.digests)

    def write(self, folder: Path) -> None:
        """Writes it into the folder of a run or a model."""
        with atomic_file(folder / FILE) as growing, growing.open("wb") as file:
            np.savez(file, digests=self.digests, complete=np.bool_(self.complete))

    @classmethod
    def read(cls, folder: Path) -> TrainedOn:
        """Reads it from a model's folder or, for a checkpoint, that of its run.

        Raises:
            UserError: the file is damaged.
        """
        places = (folder / FILE, folder.parent / FILE)
        path = next((path for path in places if path.is_file()), None)
        if path is None:
            return cls.unknown()
        try:
            with np.load(path, allow_pickle=False) as file:
                digests, complete = file["digests"], bool(file["complete"])
            if digests.dtype != np.uint64 or digests.ndim != 1:
                raise ValueError(f"holds {digests.dtype} of shape {digests.shape}")
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path}: damaged: {error}") from None
        return cls(digests, complete)
