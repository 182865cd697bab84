"""What a piece of a video gives: encoded in a child process, or taken over from an older tar."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import IO, Any

from data_prep.reasons import Rejected, RejectReason
from data_prep.segments.transcode import Segment, transcode
from data_prep.settings import PrepSettings
from data_prep.shards.manifest import read_record
from data_prep.shards.plan import Piece, ShardPlan
from dynamonet.child_process import ChildFailed, stream
from dynamonet.digest import digest_of_bytes
from dynamonet.shards import index
from dynamonet.storage import Folder
from dynamonet.video.constant_rate import output_rate
from dynamonet.video.decode import Box, DecodeError
from dynamonet.video.files import Source, open_bytes, open_source, printable
from dynamonet.video.letterbox import find_content

Item = Segment | Rejected
CHUNK_BYTES = 4 << 20  # of segments that are handed over at a time


def encode_piece(piece: Piece, source: str, settings: PrepSettings) -> Iterator[list[Item]]:
    """Encodes a piece; yields what it gives, some megabytes at a time. Runs in a Ray task."""
    chunk: list[Item] = []
    size = 0
    for item in encoded(piece, Folder.at(source), settings):
        chunk.append(item)
        size += len(item.data) if isinstance(item, Segment) else 0
        if size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    yield chunk


def encoded(piece: Piece, videos: Folder, settings: PrepSettings) -> Iterator[Item]:
    """Transcodes a piece in a child; what of it gives no segment is rejected."""
    start, end = float(piece.time_range.start), piece.end_seconds
    done, given, failed = start, 0, ""
    try:
        for item in stream(_transcoded, piece, videos, settings, limits=settings.limits):
            done = item.end_seconds or done
            given += isinstance(item, Segment)
            yield item
    except ChildFailed as error:
        failed = str(error)
    frame = 1 / float(output_rate(piece.info.fps, settings.encode.max_fps))
    is_missing = end - done > frame and given != piece.most_segments
    if failed or is_missing:
        whole = done == start and piece.time_range.is_whole
        where = (None, None) if whole else (done, max(done, end))
        shown = printable(piece.source.path)
        yield Rejected(shown, RejectReason.UNREADABLE, failed or "no frames", *where)


def _transcoded(piece: Piece, videos: Folder, settings: PrepSettings) -> Iterator[Item]:
    try:
        box = _content(piece, videos) if settings.encode.crop_letterbox else None
        rate = output_rate(piece.info.fps, settings.encode.max_fps)
        with open_source(videos, piece.source, part=not piece.time_range.is_whole) as container:
            most = piece.most_segments
            shown = printable(piece.source.path)
            yield from transcode(
                container, piece.time_range, rate, settings, source=shown, box=box, most=most
            )
    except (DecodeError, OSError) as error:
        raise ChildFailed(str(error)) from None


def _content(piece: Piece, videos: Folder) -> Box | None:
    """Returns the part of a source's frames inside black bars."""
    with open_source(videos, piece.source, part=True) as container:
        return find_content(container, piece.info.seconds)


class OlderTars:
    """The tars of a set in which a new tar's pieces may be finished already."""

    def __init__(
        self, folder: Folder, plan: ShardPlan, totals: Sequence[int], settings: PrepSettings
    ) -> None:
        """Reads the records of the tars.

        Args:
            totals: Numbers of tars that the set has been divided into.
        """
        self._folder = folder
        self._tars: dict[str, IO[bytes]] = {}  # opened once for all their pieces
        self._known: dict[str, tuple[str, list[dict[str, Any]], list[Rejected]]] = {}
        wanted = {piece.digest for piece in plan.pieces}
        for name in plan.older_names(totals):
            record = read_record(folder, name)
            if record is None or folder.size(name) != record.tar_bytes:
                continue
            for digest, rows, rejected in record.by_piece():
                lasting = all(item.kind.is_lasting for item in rejected)
                if digest in wanted and (lasting or not settings.retry_quarantined):
                    self._known[digest] = name, rows, rejected

    def __contains__(self, piece: Piece) -> bool:
        return piece.digest in self._known

    def take(self, piece: Piece) -> list[Item] | None:
        """Returns what a piece gave; None where a tar is not what its record says."""
        name, rows, rejected = self._known[piece.digest]
        items: list[Item] = [replace(r, source=printable(piece.source.path)) for r in rejected]
        if name not in self._tars:
            place = Source(name, self._folder.size(name) or 0, 0)
            self._tars[name] = open_bytes(self._folder, place)
        tar = self._tars[name]
        for row in rows:
            tar.seek(row["offset"])
            data = tar.read(row["size"])
            if digest_of_bytes(data) != row["digest"]:
                return None
            items.append(_segment(row, data))
        return items

    def close(self) -> None:
        for tar in self._tars.values():
            tar.close()


def _segment(row: dict[str, Any], data: bytes) -> Segment:
    names = ("start_seconds", "end_seconds", "frames", "fps", "width", "height")
    scores = {name: row[name] for name in index.SCORES}
    measured = {name: row[name] for name in names}
    return Segment(data, **measured, scores=scores, normalised=tuple(row["normalised"]))
