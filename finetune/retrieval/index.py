"""Nearest rows by faiss: all compared up to `EXACT` windows, an index on disk above.

The index is made at the first search of a folder and kept in it. It compares a query with the rows
of the `PROBES` nearest of some thousand cells, each value in 16 bits.

Source: faiss (Johnson et al. 2019), IVF with a scalar quantiser.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from dynamonet.digest import digest_of_bytes
from dynamonet.storage import atomic_file
from finetune.retrieval.features import FeatureTable, Scaling
from finetune.retrieval.knn import Rows

EXACT = 50_000  # windows of a folder up to which all are compared
PROBES = 32  # cells that are looked into
CELLS_A_ROOT = 4  # cells for each root of the number of rows. Source: faiss's guidelines
TRAINED_ON = 40  # rows a cell, which the cells are learnt from

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class NearestRows:
    """Finds the rows nearest to others by distance 1 - cosine, 0 to 2."""

    index: Any  # faiss's, of inner products
    scaling: Scaling
    probes: int | None = None  # None = all rows are compared

    @classmethod
    def of(cls, table: FeatureTable) -> NearestRows:
        """Compares all rows, or reads or makes the folder's index.

        Raises:
            UserError: the features cannot be read, or the index cannot be written.
        """
        if table.place.is_file() or len(table) <= EXACT:
            return cls.exact(table.rows, table.scaling)
        file = table.place / f"index-{table.by}.faiss"
        kept = table.place / f"index-{table.by}.npz"
        parts = _digest(table)
        if file.is_file() and kept.is_file():
            with np.load(kept) as about:
                if str(about["parts"]) == parts:
                    scaling = Scaling(about["mean"], about["factor"])
                    return cls(faiss.read_index(str(file)), scaling, PROBES)
        print(f"index    of {len(table):,} windows, once ...", flush=True)
        began = time.monotonic()
        made = cls.approximate(table.rows, table.scaling)
        with atomic_file(file) as growing:
            faiss.write_index(made.index, str(growing))
        with atomic_file(kept) as growing, growing.open("wb") as out:
            scale = made.scaling
            np.savez(out, parts=np.str_(parts), mean=scale.mean, factor=scale.factor)
        print(f"         {file}, in {time.monotonic() - began:.0f} s", flush=True)
        return made

    @classmethod
    def exact(cls, rows: Rows, scaling: Scaling) -> NearestRows:
        index = faiss.IndexFlatIP(rows.shape[1])
        index.add(rows)  # type: ignore[call-arg]
        return cls(index, scaling)

    @classmethod
    def approximate(cls, rows: Rows, scaling: Scaling) -> NearestRows:
        """Learns cells from a draw of the rows, and sorts all rows into them."""
        count, width = rows.shape
        cells = int(CELLS_A_ROOT * count**0.5)
        coarse = faiss.IndexFlatIP(width)
        kind, metric = faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        index = faiss.IndexIVFScalarQuantizer(coarse, width, cells, kind, metric)
        draw = np.random.default_rng(0).choice(count, min(count, TRAINED_ON * cells), replace=False)
        index.train(rows[np.sort(draw)])  # type: ignore[call-arg]
        index.add(rows)  # type: ignore[call-arg]
        index.make_direct_map()  # so that rows can be asked for; kept with it
        return cls(index, scaling, PROBES)

    def search(self, queries: Rows, count: int, without: Ids | None = None) -> tuple[Rows, Ids]:
        """Finds the nearest rows of each query.

        Args:
            queries: (Q, D), scaled.
            without: Rows that do not count.

        Returns:
            Distances (Q, count), the nearest first, and the rows' numbers; infinity and -1 where
            there are no more.
        """
        words: dict[str, Any] = {}
        if without is not None and len(without):
            words["sel"] = faiss.IDSelectorNot(faiss.IDSelectorBatch(without))
        if self.probes is None:
            params = faiss.SearchParameters(**words)
        else:
            words["nprobe"] = self.probes
            params = faiss.SearchParametersIVF(**words)
        likeness, ids = self.index.search(queries, count, params=params)
        far = np.where(ids >= 0, np.clip(1 - likeness, 0, 2), np.inf)
        return far.astype(np.float32), ids

    def rows(self, ids: Ids) -> Rows:
        """Returns rows by their numbers, scaled."""
        return self.index.reconstruct_batch(ids)


def isolation(nearest: NearestRows, group: Ids, k: int) -> Rows:
    """Returns the mean distance (N,) of each row to its k nearest of another group.

    Rows of the same group (the same video) do not count: windows of a video resemble each other,
    and a lone video would hide behind itself. Fewer than k others: the mean over those there are.
    NaN where there is none.

    Source: the weight of Angiulli and Pizzuti, "Fast Outlier Detection in High Dimensional
    Spaces", PKDD 2002, divided by k. That rows of the same group do not count is ours.
    """
    order = group.argsort(kind="stable")
    isolations = np.empty(len(group), np.float32)
    for own in np.split(order, np.flatnonzero(np.diff(group[order])) + 1):
        far, _ = nearest.search(nearest.rows(own), k, without=own)
        there = np.isfinite(far)
        with np.errstate(invalid="ignore"):
            isolations[own] = np.where(there, far, 0).sum(1) / there.sum(1)
    return isolations


def _digest(table: FeatureTable) -> str:
    """Returns what tells whether the parts are those that an index was made of."""
    names = [f"{file.name} {file.stat().st_size}" for file in table.files]
    return digest_of_bytes("\n".join([table.digest, *names]).encode())
