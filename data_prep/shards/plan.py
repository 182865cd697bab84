"""Which tar holds what: a pure function of the sources and the settings.

    source --cut at multiples of segment_seconds-->  pieces of at most 1/16 of a tar
    piece  --hash of its content, modulo N-->        one of N tars, N a power of two

A piece's tar depends on its own bytes and on N, not on its name or its neighbours: adding, removing
or renaming a video changes the tars of its own pieces. Where the set outgrows N, each tar becomes
two. Hashing also takes neighbours in a folder apart, so that plain streaming is not correlated.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction

from data_prep.settings import EncodeSettings, PrepSettings
from data_prep.shards.manifest import shard_name
from data_prep.sources.labels import Label
from data_prep.sources.probe import VideoInfo
from dynamonet.digest import digest_of_bytes
from dynamonet.video.constant_rate import TimeRange, output_rate
from dynamonet.video.files import Source, printable

BITS_PER_PIXEL = 0.23  # of our encodings at crf 23. Source: measured on 316 sports clips
PIECES_A_TAR = 16  # at least: more would make tars more equal and cost a seek each
CRF_HALVES = 6  # steps of crf that halve the bytes. Source: x264's own rule of thumb


@dataclass(frozen=True, slots=True)
class Piece:
    """A time range of one source that goes into one tar."""

    source: Source
    info: VideoInfo
    time_range: TimeRange
    first_segment: int
    label: Label | None
    class_index: int | None
    most_segments: int | None  # that may be taken of it; None = all
    digest: str  # of everything that decides what it gives, wherever its source lies

    @property
    def end_seconds(self) -> float:
        """Where it ends: an open piece with its source, as far as that is known."""
        end = self.time_range.end
        return self.info.seconds if end is None else min(float(end), self.info.seconds)

    @property
    def seconds(self) -> float:
        return max(0.0, self.end_seconds - float(self.time_range.start))

    def key(self, first_frame: int) -> str:
        """Returns the key of the segment that begins at a frame of the whole video, as it is
        written: 16 hex digits of the path, then that number."""
        path = hashlib.blake2b(printable(self.source.path).encode(), digest_size=8).hexdigest()
        return f"{path}_{first_frame:08d}"


@dataclass(frozen=True)
class ShardPlan:
    """One tar to make."""

    number: int
    total: int  # tars that the set is divided into
    pieces: tuple[Piece, ...]  # in the order in which they stand in the tar
    digest: str  # of everything that decides the tar's bytes

    @property
    def name(self) -> str:
        return shard_name(self.number, self.total)

    @property
    def seconds(self) -> float:
        return sum(piece.seconds for piece in self.pieces)

    def older_names(self, totals: Iterable[int]) -> list[str]:
        """Returns the tars that held these pieces when the set was divided into other numbers."""
        return [
            shard_name(number, total)
            for total in totals
            for number in range(self.number % total, total, self.total)
        ]


def plan_shards(
    sources: list[tuple[Source, VideoInfo]],
    labels: dict[str, Label],
    classes: list[str],
    settings: PrepSettings,
) -> list[ShardPlan]:
    """Assigns every source to tars of about `shard_mb` megabytes."""
    place = {name: index for index, name in enumerate(classes)}
    encoding = json.dumps(settings.encoding(), sort_keys=True)
    pieces, total_bytes = [], 0.0
    for source, info in sources:
        label = labels.get(source.path)
        index = None if label is None else place[label.class_name]
        for first, time_range, most in _time_ranges(info, settings):
            words = (encoding, info.digest, time_range.start, time_range.end, most)
            digest = digest_of_bytes("\n".join(map(str, words)).encode())
            pieces.append(Piece(source, info, time_range, first, label, index, most, digest))
            total_bytes += pieces[-1].seconds * bytes_per_second(info, settings.encode)
    pieces.sort(key=lambda piece: (piece.digest, piece.source.path))
    total = 2 ** max(0, math.ceil(math.log2(max(1.0, total_bytes / settings.shard_mb / 1e6))))
    tars: dict[int, list[Piece]] = defaultdict(list)
    for piece in pieces:
        tars[int(piece.digest, 16) % total].append(piece)
    return [ShardPlan(n, total, tuple(tars[n]), _digest(tars[n])) for n in sorted(tars)]


def bytes_per_second(info: VideoInfo, encode: EncodeSettings) -> float:
    """Estimates how many bytes a second of this source takes once encoded."""
    factor = min(1.0, encode.short_side_px / min(info.width, info.height))
    pixels = info.width * info.height * factor**2 * float(output_rate(info.fps, encode.max_fps))
    return pixels * BITS_PER_PIXEL / 8 * 2 ** ((23 - encode.crf) / CRF_HALVES)


def _time_ranges(
    info: VideoInfo, settings: PrepSettings
) -> list[tuple[int, TimeRange, int | None]]:
    """Cuts a source into pieces: (number of the first segment, time range, most segments).

    The last piece is open, because headers lie about length.
    """
    if not info.steady:  # its parts cannot be found by their times
        return [(0, TimeRange(Fraction(0), None), settings.max_segments_per_video)]
    rate = output_rate(info.fps, settings.encode.max_fps)
    segment = Fraction(max(1, round(settings.segment_seconds * rate))) / rate
    chosen = _chosen(info.seconds / float(segment), settings.max_segments_per_video)
    if chosen is not None:
        return [(n, TimeRange(segment * n, segment * (n + 1)), 1) for n in chosen]
    piece_seconds = settings.shard_mb * 1e6 / bytes_per_second(info, settings.encode)
    per_piece = max(1, int(piece_seconds / PIECES_A_TAR / float(segment)))
    num_pieces = max(1, math.ceil(info.seconds / float(segment * per_piece)))
    cuts = [segment * per_piece * i for i in range(num_pieces)]
    ends: list[Fraction | None] = [*cuts[1:], None]
    pairs = enumerate(zip(cuts, ends, strict=True))
    return [(i * per_piece, TimeRange(start, end), None) for i, (start, end) in pairs]


def _chosen(num_segments: float, most: int | None) -> list[int] | None:
    """Returns the numbers of the segments to take: whole ones, in the middle of equal parts.

        0 1 2 3 4 5 6 7 8 .      most 3 of 9.4 segments
          ^     ^     ^

    None = all of them.
    """
    if most is None or num_segments <= 1:
        return None if most is None else [0]
    whole = int(num_segments)
    if most >= math.ceil(num_segments):
        return list(range(math.ceil(num_segments)))
    most = min(most, whole)
    return [int((n + 0.5) * whole / most) for n in range(most)]


def _digest(pieces: list[Piece]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for piece in pieces:
        known = {
            "piece": piece.digest,
            "path": printable(piece.source.path),
            "label": asdict(piece.label) if piece.label else None,
            "class_index": piece.class_index,
        }
        digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()
