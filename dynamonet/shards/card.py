"""The data-set card: what a set is, in one small JSON file beside its tars."""

from __future__ import annotations

import difflib
import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.storage import Folder

FORMAT = "dynamonet-shards"
FORMAT_VERSION = 4
# 1 has no scores and no kinds of normalisation, 2 no kinds of reasons, 3 no filtered segments
READABLE = (1, 2, 3, 4)
CARD, RECORDS = "card.json", "records"
CARD_COPY = f"{RECORDS}/{CARD}"  # so that a damaged card can be repaired


class DamagedCardError(UserError):
    """A card that cannot be read."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Counts(_Part):
    """What a set holds and what it left out; older versions count less."""

    videos_found: int = 0
    videos_taken: int = 0
    samples: int = 0
    seconds: float = 0.0  # in segments
    seconds_declared: float = 0.0  # by headers, or by packets where a header says less
    seconds_quarantined: float = 0.0
    seconds_not_asked_for: float = 0.0  # beyond max_segments_per_video
    bytes: int = 0
    shards: int = 0
    near_duplicates: int = 0
    in_excluded_sets: int = 0
    videos_quarantined: dict[str, int] = {}  # by kind of reason
    stretches_quarantined: dict[str, int] = {}
    videos_normalised: dict[str, int] = {}  # by kind of change
    listed_but_missing: int = 0
    found_but_unlisted: int = 0


# BLAKE2b-128 in hex: names of folders are made of it, so nothing else may stand there
Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class ExcludedSet(_Part):
    """A set whose copies were left out."""

    name: str
    path: str
    digest: Digest


class Card(_Part):
    """What is written in `card.json`."""

    format: str = FORMAT
    version: int = FORMAT_VERSION
    digest: Digest  # of the content: the same for the same samples, wherever they lie
    made_with: str = "unknown"  # version of this program
    settings: dict[str, Any] = {}  # those of stage 1 that made the set
    excluded: tuple[ExcludedSet, ...] = ()
    classes: tuple[str, ...] = ()  # in label order; none for unlabelled sets
    num_splits: int = Field(default=0, ge=0)
    counts: Counts = Counts()
    run: dict[str, Any] | None = None  # the origin, see `dynamonet.tracking.origin`

    def to_json(self) -> str:
        """Returns the card as it is written."""
        values = self.model_dump(mode="json")
        if self.run is None:
            values.pop("run")
        return json.dumps(values, indent=2) + "\n"

    def check_current(self, folder: Folder) -> None:
        """Raises UserError if this program reads a set, but does not write its version."""
        if self.version != FORMAT_VERSION:
            raise UserError(
                f"{folder.path}: written as version {self.version}, which can be trained on; only "
                f"sets of version {FORMAT_VERSION} can be checked, repaired or added to. Make the "
                "shards again in another folder, or use the version of this program that made them "
                f"({self.made_with})."
            )


def read_card(folder: Folder, name: str = CARD) -> Card:
    """Reads a set's card, or the copy of it in the records.

    Raises:
        UserError: there is none, or another version wrote it.
        DamagedCardError: it cannot be read.
    """
    if folder.size(name) is None:
        raise UserError(
            f"{folder.path}: no shards here (expected {CARD}, its tables and tars)"
            f"{similar_set(folder)}",
            f"Make them with\n  {command('shard')} --source VIDEOS --output {folder.path}",
        )
    try:
        values = json.loads(folder.read(name))
        if values["format"] == FORMAT and values["version"] in READABLE:
            return Card.model_validate(values)
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise DamagedCardError(
            f"{folder.path}/{name}: damaged: {' '.join(repr(error).split())}",
            f"Repair it with\n  {repair_command(folder)}",
        ) from None
    raise UserError(
        f"{folder.path}: written as {values['format']} version {values['version']}; this program "
        f"reads {FORMAT} versions {READABLE[0]} to {READABLE[-1]}",
        "Make the shards again with this version.",
    )


def similar_set(folder: Folder) -> str:
    """Returns a hint at the set beside a missing one whose name is most like it; else nothing."""
    parent, name = Path(folder.path).parent, Path(folder.path).name
    if not folder.is_local or not parent.is_dir():
        return ""
    sets = [each.parent.name for each in parent.glob(f"*/{CARD}")]
    near = difflib.get_close_matches(name, sets, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def readable_cards(folder: Folder) -> Iterator[Card]:
    """Yields the card and its copy, as far as they can be read."""
    for name in (CARD, CARD_COPY):
        try:
            yield read_card(folder, name)
        except UserError:
            continue


def write_card(folder: Folder, card: Card) -> None:
    """Writes a set's card, and its copy before it."""
    for name in (CARD_COPY, CARD):
        folder.write(name, card.to_json().encode())


def repair_command(folder: Folder) -> str:
    """Returns the command that checks a set and rebuilds what is damaged."""
    return f"{command('verify')} {shlex.quote(folder.path)} --repair"
