"""Has the model that a fine-tuning starts from seen the test videos?

digests of all sources that were trained on    beside the weights; else of the sets that the
                                               record of the weights names, if still there
fingerprints of those sets' segments           where stage 1 made some of both sets
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dynamonet.copies.fingerprints import Fingerprint, FingerprintFile, read_fingerprints
from dynamonet.copies.matching import matched_pairs
from dynamonet.errors import UserError
from dynamonet.shards import index
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.origin import Origin
from dynamonet.tracking.seen import TrainedOn
from dynamonet.training.start import Pretrained

NAMED = 3  # videos in a message
LARGEST = 1_000_000  # segments of a set whose fingerprints are compared here: some minutes
BLOCK = 20_000  # of them at a time, which bounds the memory


@dataclass(frozen=True)
class Seen:
    """Which test videos a model has seen."""

    videos: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()  # those of which it has seen what looks like a copy, and that
    unknown: str = ""  # why that is not known

    def __or__(self, other: Seen) -> Seen:
        """Returns what either of two models has seen."""
        videos = tuple(dict.fromkeys(self.videos + other.videos))
        copies = tuple(dict.fromkeys(self.copies + other.copies))
        return Seen(videos, copies, self.unknown or other.unknown)

    def refuse(self, total: int, weights: str) -> None:
        """Raises UserError if there are any, with what can be done."""
        found = [
            f"{what}{len(names)} of the {total} test videos: {', '.join(names[:NAMED])}"
            + (", ..." if len(names) > NAMED else "")
            for what, names in (("", self.videos), ("what looks like a copy of ", self.copies))
            if names
        ]
        if found:
            raise UserError(
                f"{weights} was trained on {', and on '.join(found)}. "
                "An accuracy on them says nothing of new videos.",
                "Pretrain without them (--split leaves out a labelled set's test part, --exclude "
                "of stage 1 leaves out copies), name other weights, or measure all the same with "
                "--allow_seen_test_videos",
            )

    def __str__(self) -> str:
        if not self.videos and not self.copies:
            return self.unknown
        copied = f", {len(self.copies)} of them in what looks like a copy" if self.copies else ""
        total = len(self.videos) + len(self.copies)
        return f"{total} TEST VIDEOS WERE SEEN IN TRAINING{copied}"


def find_seen(pretrained: Pretrained, shards: ShardSet, rows: NDArray[np.int64]) -> Seen:
    """Looks for the videos of some rows among those that a model was trained on."""
    named = list(_training_sets(pretrained.origin))
    known = TrainedOn.read(pretrained.folder)
    if not known.complete:
        known = _of_sets(named) or known
    table = shards.table.select(["source", "source_digest"]).take(rows).to_pydict()
    pairs = dict(zip(table["source"], table["source_digest"], strict=True))
    same = [name for name, found in zip(pairs, known.has(pairs.values()), strict=True) if found]
    others = rows[~np.isin(table["source"], same)]
    copies = _copies([each for each in named if each], known, shards, others)
    unknown = "" if known.complete else "whether the weights have seen test videos is not known"
    return Seen(tuple(same), tuple(f"{of} ({copy})" for of, copy in copies.items()), unknown)


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


def _training_sets(origin: Origin | None) -> Iterator[ShardSet | None]:
    """Yields the sets that a model and those before it learnt from; None where one is gone."""
    uses = [use for step in _ancestry(origin) for use in step.datasets] if origin else []
    for use in dict.fromkeys(use for use in uses if use.context == "training"):
        try:
            shards = ShardSet.open(use.path)
        except UserError:
            yield None
        else:
            yield shards if shards.digest == use.digest else None


def _of_sets(named: list[ShardSet | None]) -> TrainedOn | None:
    """Returns the sources of sets; None where there are none, one is gone, or a split was taken."""
    if not named:
        return None
    found = TrainedOn.of([])
    for shards in named:
        if shards is None or shards.num_splits:
            return None
        for (digests,) in shards.index.parts("source_digest"):
            found |= TrainedOn.of(set(digests))
    return found


def _copies(
    sets: list[ShardSet], known: TrainedOn, shards: ShardSet, rows: NDArray[np.int64]
) -> dict[str, str]:
    """Returns the videos of some rows like which one was trained on, and the most similar one."""
    trained = [(each, _comparable(each, known, shards)) for each in sets]
    if not any(len(others) for _, others in trained):
        return {}
    asked = [item for block in _fingerprints(shards, rows) for item in block]
    closest: dict[str, tuple[float, str]] = {}
    for each, others in trained:
        for block in _fingerprints(each, others):
            pairs = matched_pairs([kept for _, kept in block], [kept for _, kept in asked])
            for here, there, match in pairs:
                near, name = (match.still, block[here][0]), asked[there][0]
                closest[name] = min(near, closest.get(name, near))
    return {name: copy for name, (_, copy) in closest.items()}


def _comparable(trained: ShardSet, known: TrainedOn, shards: ShardSet) -> NDArray[np.int64]:
    """Returns the rows that were trained on and may hold copies of a labelled set's videos.

    That set's own videos are not compared with each other: its lists say which are trained on.
    """
    excluded = {each.digest for each in trained.card.excluded}
    if shards.digest in {*excluded, trained.digest} or len(trained) > LARGEST:
        return np.zeros(0, np.int64)
    own = set(shards.table["source_digest"].to_pylist())
    digests = trained.table["source_digest"].to_pylist()
    return np.flatnonzero(known.has(digests) & [digest not in own for digest in digests])


def _fingerprints(
    shards: ShardSet, rows: NDArray[np.int64]
) -> Iterator[list[tuple[str, Fingerprint]]]:
    """Yields source and fingerprint of some rows, as far as stage 1 made them, block by block."""
    names = ["source", "key", "digest", "shard", "offset", "size"]
    block: list[tuple[str, Fingerprint]] = []
    for tar, part in index.by_tar(shards.table.select(names).take(rows)).items():
        file = FingerprintFile.of(shards.folder.path, tar, part)
        if file.is_whole():
            kept = read_fingerprints(file.folder, file.name, part["key"].to_pylist())
            block += zip(part["source"].to_pylist(), kept, strict=True)
        if len(block) >= BLOCK:
            yield block
            block = []
    if block:
        yield block
