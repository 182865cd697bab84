"""Finding raw videos and reading what their headers say."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import IO

import av
from av.container import InputContainer
from av.video.stream import VideoStream
from pyarrow import fs as pafs

from dynamonet.errors import UserError
from dynamonet.storage import Folder
from dynamonet.video.decode import DecodeError, open_video, video_stream

_CHUNK = 1 << 20
# Video endings that Python's table of types leaves out.
_MORE_VIDEO = frozenset(
    ".3g2 .3gp .amv .asf .divx .dv .f4v .flv .gif .ivf .m2ts .m2v .m4v .mk3d .mts .mxf .nut .ogm "
    ".ogv .qt .rm .rmvb .ts .vob .wmv .wtv .y4m".split()
)


@dataclass(frozen=True)
class Source:
    """A video file below the source folder."""

    path: str  # relative, with `/`
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Facts:
    """What a source's header says."""

    digest: str  # BLAKE2b-128 of the file
    seconds: float  # 0 where the header does not say
    fps: Fraction
    width: int  # of square pixels, before any rotation
    height: int


@dataclass(frozen=True)
class Rejected:
    """A video, or a stretch of one, that is not taken."""

    source: str
    reason: str
    start_seconds: float | None = None  # None = the whole video
    end_seconds: float | None = None


def find_sources(folder: Folder) -> tuple[list[Source], Counter[str]]:
    """Lists the videos below a folder, sorted by path, and counts the other files by ending.

    A file counts as a video when its ending says so, or when its ending is unknown and FFmpeg finds
    moving pictures in it. Names that begin with a dot are passed over.

    Raises:
        UserError: there is no such folder.
    """
    listed = _walk_local(folder) if folder.is_local else _walk_remote(folder)
    sources, others = [], Counter[str]()
    for source in listed:
        ending = PurePosixPath(source.path).suffix.lower()
        kind = (mimetypes.guess_type(f"x{ending}")[0] or "").split("/")[0]
        if ending in _MORE_VIDEO or kind == "video" or (not kind and _sniff(folder, source)):
            sources.append(source)
        else:
            others[ending or "(no ending)"] += 1
    return sorted(sources, key=lambda s: s.path), others


def inspect(folder: Folder, source: Source, min_side_px: int) -> Facts | Rejected:
    """Hashes a source and reads its header; never raises for what the file holds."""
    try:
        if source.size == 0:
            return Rejected(source.path, "empty file (0 bytes)")
        digest = digest_of(folder, source)
        with open_source(folder, source) as container:
            stream = video_stream(container)
            rate = stream.average_rate or stream.guessed_rate
            context = stream.codec_context
            if not rate or not context.width or not context.height:
                return Rejected(source.path, "no picture size or frame rate in the header")
            if min(context.width, context.height) < min_side_px:
                size = f"{context.width} x {context.height} pixels"
                return Rejected(source.path, f"too small: {size}, min_side_px is {min_side_px}")
            if stream.duration and stream.time_base:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
            width, height = _square_pixels(context.width, context.height, stream)
            return Facts(digest, max(seconds, 0.0), Fraction(rate), width, height)
    except DecodeError as error:
        return Rejected(source.path, str(error))
    except OSError as error:
        return Rejected(source.path, f"cannot be read: {error.strerror or error}")


def open_source(folder: Folder, source: Source) -> InputContainer:
    """Opens a source for decoding; the caller closes it.

    Raises:
        DecodeError: FFmpeg cannot open it.
    """
    if folder.is_local and printable(source.path) == source.path:
        return open_video(folder.below(source.path))
    return open_video(_open_bytes(folder, source))


def printable(path: str) -> str:
    """Returns a path as valid text; bytes that are not UTF-8 show as \\udcXX."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def _open_bytes(folder: Folder, source: Source) -> IO[bytes]:
    if folder.is_local:
        return Path(folder.below(source.path)).open("rb")
    return folder.fs.open_input_file(folder.below(source.path))  # type: ignore[return-value]


def digest_of(folder: Folder, source: Source) -> str:
    """Returns the BLAKE2b-128 of a source file."""
    digest = hashlib.blake2b(digest_size=16)
    with _open_bytes(folder, source) as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _square_pixels(width: int, height: int, stream: VideoStream) -> tuple[int, int]:
    aspect = stream.sample_aspect_ratio
    return (round(width * aspect), height) if aspect else (width, height)


def _sniff(folder: Folder, source: Source) -> bool:
    """Tells whether FFmpeg finds a video in a file whose ending says nothing."""
    try:
        with open_source(folder, source) as container:
            return (
                container.format.name != "tty" and video_stream(container).codec_context.width > 0
            )
    except (DecodeError, OSError):
        return False


def _walk_local(folder: Folder) -> Iterator[Source]:
    root = Path(folder.root)
    if not root.is_dir():
        raise UserError(f"--source {folder.path}: no such folder")
    seen: set[tuple[int, int]] = set()
    for here, folders, files in os.walk(root, followlinks=True):
        status = Path(here).stat()
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        for name in files:
            path = Path(here) / name
            if not name.startswith(".") and path.is_file():
                found = path.stat()
                relative = path.relative_to(root).as_posix()
                yield Source(relative, found.st_size, found.st_mtime_ns)


def _walk_remote(folder: Folder) -> Iterator[Source]:
    try:
        found = folder.fs.get_file_info(pafs.FileSelector(folder.root, recursive=True))
    except OSError as error:
        raise UserError(f"--source {folder.path}: cannot be listed: {error}") from error
    for info in found:
        if info.type == pafs.FileType.File and not info.base_name.startswith("."):
            path = info.path.removeprefix(folder.root + "/")
            yield Source(path, info.size, info.mtime_ns or 0)
