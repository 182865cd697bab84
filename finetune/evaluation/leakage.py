"""Has the model that a fine-tuning starts from seen the test videos?

By the digests of the source files that were trained on, which stand beside the weights; where they
do not, by the shard sets that its record names, as far as they are still there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.model.files import MODEL
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.origin import Origin
from dynamonet.tracking.seen import Digests, read_seen, shortened
from dynamonet.training.start import Pretrained

NAMED = 3  # videos in a message


@dataclass(frozen=True)
class Seen:
    """Which test videos a model has seen."""

    videos: tuple[str, ...]
    unknown: str = ""  # why that is not known

    def refuse(self, total: int, weights: str) -> None:
        """Raises UserError if there are any, with what can be done."""
        if not self.videos:
            return
        names = ", ".join(self.videos[:NAMED]) + (", ..." if len(self.videos) > NAMED else "")
        raise UserError(
            f"{weights} was trained on {len(self.videos)} of the {total} test videos: {names}. "
            "An accuracy on them says nothing of new videos.",
            "Pretrain without them (a labelled set's test part is left out by --split), name "
            "other weights, or measure all the same with --allow_seen_test_videos",
        )

    def __str__(self) -> str:
        if self.videos:
            return f"{len(self.videos)} TEST VIDEOS WERE SEEN IN TRAINING"
        return self.unknown


def find_seen(pretrained: Pretrained, shards: ShardSet, rows: NDArray[np.int64]) -> Seen:
    """Looks for the videos of some rows among those that a model was trained on."""
    known = read_seen(pretrained.folder)
    if known is None:
        known = read_seen(pretrained.folder.parent / MODEL)
    if known is None:
        known = _of_sets(pretrained.origin)
    if known is None:
        return Seen((), "whether the weights have seen test videos is not known")
    table = shards.table.select(["source", "source_digest"]).take(rows).to_pydict()
    pairs = dict(zip(table["source"], table["source_digest"], strict=True))
    same = np.isin([shortened([digest])[0] for digest in pairs.values()], known)
    return Seen(tuple(name for name, found in zip(pairs, same, strict=True) if found))


def labels_spent(origin: Origin | None) -> str:
    """Says which labels went into a model that is called pretrained; empty where none did."""
    if origin is None:
        return ""
    found = []
    for step in _ancestry(origin):
        names = [use.name for use in step.datasets if use.context != "evaluation"]
        probes = [use.name for use in step.datasets if use.context == "evaluation"]
        if step.stage == "finetune":
            found.append(f"trained with the labels of {', '.join(names)}")
        elif step.stage == "pretrain" and probes:
            found.append(f"probed with the labels of {', '.join(probes)}")
    return " and ".join(dict.fromkeys(found))


def _ancestry(origin: Origin) -> Iterator[Origin]:
    yield origin
    for parent in origin.parents:
        yield from _ancestry(parent)


def _of_sets(origin: Origin | None) -> Digests | None:
    """Returns the sources of the sets that a model's record names; None: that cannot be told.

    Of a labelled set it does not say which split was trained on.
    """
    if origin is None:
        return None
    found = [np.zeros(0, np.uint64)]
    for step in _ancestry(origin):
        uses = [use for use in step.datasets if use.context == "training"]
        for use in uses if step.stage in ("pretrain", "finetune") else ():
            try:
                shards = ShardSet.open(use.path)
            except UserError:
                return None
            if shards.digest != use.digest or shards.num_splits:
                return None
            found.append(shortened(shards.table["source_digest"].to_pylist()))
    return np.unique(np.concatenate(found))
