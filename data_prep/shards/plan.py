"""Which tar holds what: a pure function of the sources and the settings.

    source --cut at multiples of segment_seconds-->   pieces of at most 1/16 of a tar
    pieces --in the order of their hashes-->          ....................................
           --top k bits of the hash-->                |    block 0     |     block 1     |
           --equal bytes within a block-->            | tar 0 | tar 1 | tar 0 | tar 1 |

Tars come out about equal, and a piece's tar depends on its own hash and its block alone: adding or
removing a video changes the 16 to 32 tars of one block (k grows when the set doubles). Hashing also
takes neighbours in a folder apart, so that plain streaming is not correlated.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from fractions import Fraction

from data_prep.settings import EncodeSettings, PrepSettings
from data_prep.sources.labels import Label
from data_prep.sources.probe import VideoInfo
from dynamonet.video.constant_rate import TimeRange, output_rate
from dynamonet.video.files import Source, printable

BITS_PER_PIXEL = 0.23  # of our encodings at crf 23. Source: measured on 316 sports clips
PIECES_A_TAR = 16  # at least: more would make tars more equal and cost a seek each
TARS_A_BLOCK = 16  # at least: more would make blocks more equal and additions dearer
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
    most_segments: int | None = None  # that may be taken of it; None = all

    @property
    def name_hash(self) -> str:
        return hashlib.blake2b(
            f"{printable(self.source.path)}\n{self.first_segment}".encode(), digest_size=8
        ).hexdigest()

    def key(self, first_frame: int) -> str:
        """Returns the key of the segment that begins at a frame of the whole video, as it is
        written: 16 hex digits of the path, then that number."""
        path = hashlib.blake2b(printable(self.source.path).encode(), digest_size=8).hexdigest()
        return f"{path}_{first_frame:08d}"


@dataclass(frozen=True)
class ShardPlan:
    """One tar to make."""

    block: int
    number: int  # within its block
    pieces: tuple[Piece, ...]  # in the order in which they stand in the tar
    digest: str  # of everything that decides the tar's bytes

    @property
    def name(self) -> str:
        return f"shard-{self.block:04d}-{self.number:02d}.tar"

    @property
    def seconds(self) -> float:
        return sum(_seconds(piece) for piece in self.pieces)


def plan_shards(
    sources: list[tuple[Source, VideoInfo]],
    labels: dict[str, Label],
    classes: list[str],
    settings: PrepSettings,
) -> list[ShardPlan]:
    """Assigns every source to tars of about `shard_mb` megabytes."""
    place = {name: index for index, name in enumerate(classes)}
    pieces = []
    for source, info in sources:
        label = labels.get(source.path)
        index = None if label is None else place[label.class_name]
        for first, time_range, most in _time_ranges(info, settings):
            pieces.append(Piece(source, info, time_range, first, label, index, most))
    pieces.sort(key=lambda piece: piece.name_hash)
    sizes = [_seconds(p) * bytes_per_second(p.info, settings.encode) for p in pieces]
    tar_bytes = settings.shard_mb * 1e6
    bits = max(0, math.floor(math.log2(max(1.0, sum(sizes) / tar_bytes / TARS_A_BLOCK))))
    blocks: list[list[tuple[Piece, float]]] = [[] for _ in range(2**bits)]
    for piece, size in zip(pieces, sizes, strict=True):
        blocks[int(piece.name_hash, 16) >> (64 - bits)].append((piece, size))
    content = json.dumps(settings.content(), sort_keys=True)
    return [
        ShardPlan(block, number, tuple(members), _digest(content, members))
        for block, contents in enumerate(blocks)
        for number, members in enumerate(_equal_parts(contents, tar_bytes))
        if members
    ]


def _equal_parts(pieces: list[tuple[Piece, float]], most: float) -> list[list[Piece]]:
    """Cuts pieces, in their order, into the fewest parts of equal size that stay below `most`."""
    total = sum(size for _, size in pieces)
    count = max(1, math.ceil(total / most))
    parts: list[list[Piece]] = [[] for _ in range(count)]
    before = 0.0
    for piece, size in pieces:
        middle = before + size / 2
        parts[min(count - 1, int(middle / max(total, 1e-9) * count))].append(piece)
        before += size
    return parts


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


def _seconds(piece: Piece) -> float:
    end = piece.info.seconds if piece.time_range.end is None else float(piece.time_range.end)
    return max(0.0, end - float(piece.time_range.start))


def _digest(content: str, pieces: list[Piece]) -> str:
    digest = hashlib.blake2b(content.encode(), digest_size=16)
    for piece in pieces:
        known = {
            "path": printable(piece.source.path),
            "source": piece.info.digest,
            "start": str(piece.time_range.start),
            "end": str(piece.time_range.end),
            "label": asdict(piece.label) if piece.label else None,
            "class_index": piece.class_index,
            "most": piece.most_segments,
        }
        digest.update(json.dumps(known, sort_keys=True).encode())
    return digest.hexdigest()
