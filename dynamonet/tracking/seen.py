"""Which source videos a model was trained on: a file that travels with its weights.

It holds the first 64 bits of each source file's digest, its parents' included, sorted: 8 bytes a
video. Two of a million videos and ten thousand test videos agree by chance once in 2 billion.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dynamonet.errors import UserError

FILE = "trained_on.npy"
Digests = NDArray[np.uint64]


def shortened(digests: Iterable[str]) -> Digests:
    """Returns the first 64 bits of digests in hex, each once, sorted."""
    return np.array(sorted({int(digest[:16], 16) for digest in digests}), np.uint64)


def read_seen(folder: Path) -> Digests | None:
    """Reads what the model in a folder was trained on; None where that is not recorded.

    Raises:
        UserError: the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        found = np.load(path, allow_pickle=False)
        if found.dtype != np.uint64 or found.ndim != 1:
            raise ValueError(f"holds {found.dtype} of shape {found.shape}")
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: damaged: {error}") from None
    return found


def write_seen(folder: Path, *parts: Digests) -> None:
    """Writes what a model was trained on, in several parts, into its folder."""
    np.save(folder / FILE, np.unique(np.concatenate(parts)), allow_pickle=False)
