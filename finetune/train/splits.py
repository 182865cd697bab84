"""Which rows of a labelled set are trained on, which choose the best step, which are the test.

training part ── label_share of each class's videos ──┬── validation   val_share of their groups
                                                      └── training     the others
test part                       looked at at the end, and each time is counted
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.frozen.folds import by_class, drawn
from dynamonet.shards.shard_set import ShardSet
from finetune.settings import FinetuneSettings

Rows = NDArray[np.int64]
HELD_OUT = 0.25  # of the training part's groups, where they only choose something
VAL_SHARE = 0.1  # of a set without a val part, where it has enough groups


@dataclass(frozen=True)
class Splits:
    """Rows of the index, disjoint; none share a video, and only equal groups a side."""

    train: Rows
    validation: Rows  # empty: the last step is kept
    test: Rows

    @classmethod
    def of(cls, shards: ShardSet, settings: FinetuneSettings) -> Splits:
        """Cuts a set as the settings say.

        Raises:
            UserError: nothing to train on, or nothing to test.
        """
        split, place = settings.this_split, shards.folder.path
        train = shards.rows(split=split, part="train").numbers()
        if not len(train):
            raise UserError(
                f"{place}: split {split} has no training video here; stage 1 reports how many "
                "listed videos it found"
            )
        test = shards.rows(split=split, part=settings.test_part).numbers()
        if settings.test and not len(test):
            raise UserError(
                f"{place}: split {split} has no {settings.test_part} video here; the model could "
                "not be measured",
                "Train without with --test false",
            )
        validation, share, seed = train[:0], settings.val_share, settings.labels_seed
        train = labelled_share(shards, train, settings.label_share, seed)
        if share is None and settings.test_part != "val":
            validation = shards.rows(split=split, part="val").numbers()
        if share or (share is None and not len(validation)):
            try:
                train, validation = kept_apart(shards, train, share or VAL_SHARE, seed)
            except UserError:
                if share:
                    raise  # it was asked for
        return cls(train, validation, test)


def kept_apart(shards: ShardSet, rows: Rows, share: float, seed: int) -> tuple[Rows, Rows]:
    """Cuts a share of each class's groups off, others for another seed.

    A video without a group is one of its own.

    A group with several classes goes wholly. A class with one group alone stays in the first part.

    Returns:
        The rows that stay, and those cut off.

    Raises:
        UserError: no class has two groups.
    """
    names, given = shards.table["source"].to_pylist(), shards.table["group"].to_pylist()
    groups = {int(row): given[row] or names[row] for row in rows}
    cut: set[str] = set()
    for members in by_class(shards, groups).values():
        if len(members) > 1:
            cut |= set(
                drawn(members, seed)[: min(len(members) - 1, math.ceil(share * len(members)))]
            )
    apart = np.array([groups[int(row)] in cut for row in rows], bool)
    stay = rows[~apart]
    lost = set(shards.columns["label"][rows].tolist()) - set(shards.columns["label"][stay].tolist())
    if not apart.any() or lost:
        what = (
            f"class {shards.classes[min(lost)]} would lose all" if lost else "there is no pair of"
        )
        raise UserError(
            f"{shards.folder.path}: val_share = {share:g} cannot be cut from the training part: "
            f"{what} groups of videos. Label more videos, or set val_share to 0."
        )
    return stay, rows[apart]


def labelled_share(shards: ShardSet, rows: Rows, share: float, seed: int) -> Rows:
    """Keeps a share of each class's videos, at least one, others for another seed.

    With one seed the smaller share lies in the larger.
    """
    if share == 1.0:
        return rows
    names = shards.table["source"].to_pylist()
    videos = {int(row): names[row] for row in rows}
    kept = {
        video
        for members in by_class(shards, videos).values()
        for video in drawn(members, seed)[: max(1, math.ceil(share * len(members)))]
    }
    return rows[[videos[int(row)] in kept for row in rows]]
