"""Finding video files below a folder, local or remote, and opening them."""

from __future__ import annotations

import io
import mimetypes
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from av.container import InputContainer
from pyarrow import fs as pafs

from dynamonet.child_process import DEFAULT_LIMITS, ChildFailed, call
from dynamonet.errors import UserError
from dynamonet.storage import Folder, absolute, is_uri
from dynamonet.video.decode import DecodeError, open_video, video_stream

BLOCK_BYTES = 8 << 20  # of a remote source, fetched at a time
WHOLE_BYTES = 64 << 20  # up to which it is fetched in one go
# Video endings that Python's table of types leaves out.
_MORE_VIDEO = frozenset(
    ".3g2 .3gp .amv .asf .divx .dv .f4v .flv .gif .ivf .m2ts .m2v .m4v .mk3d .mts .mxf .nut .ogm "
    ".ogv .qt .rm .rmvb .ts .vob .wmv .wtv .y4m".split()
)


@dataclass(frozen=True, slots=True)  # there may be millions
class Source:
    """A video file below the source folder."""

    path: str  # relative, with `/`
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class VideoFile:
    """A video to read."""

    name: str  # as the user wrote it, or below the folder that the user wrote
    folder: Folder
    source: Source

    @property
    def path(self) -> str:
        """The absolute path or URI, as text."""
        return printable(f"{self.folder.path}/{self.source.path}")

    def open(self) -> InputContainer:
        """Opens it for decoding; the caller closes it.

        Raises:
            DecodeError: it is empty, or FFmpeg cannot open it.
        """
        if not self.source.size:
            raise DecodeError(why_empty(self.folder, self.source))
        return open_source(self.folder, self.source)


def find_videos(places: list[str]) -> tuple[list[VideoFile], dict[str, str]]:
    """Finds the videos that paths stand for; returns them, and what is none with the reason.

    A file is taken whatever its ending; a folder, local or remote, is searched to any depth.
    """
    videos: dict[str, VideoFile] = {}
    failed: dict[str, str] = {}
    for place in places:
        for item in _at(place):
            if isinstance(item, VideoFile):
                videos.setdefault(item.folder.below(item.source.path), item)
            else:
                failed[printable(place)] = item
    return list(videos.values()), failed


def _at(place: str) -> Iterator[VideoFile | str]:
    """Yields the videos of one path, or the reason why there is none."""
    where = absolute(place)
    local = Path(where)
    if not is_uri(where) and not local.exists():
        yield "no such file or folder"
    elif not is_uri(where) and not local.is_dir():
        about = local.stat()
        source = Source(local.name, about.st_size, about.st_mtime_ns)
        yield VideoFile(printable(place), Folder.at(str(local.parent)), source)
    else:
        folder = Folder.at(where)
        sources, others = find_sources(folder)
        for source in sources:
            name = f"{place.rstrip('/')}/{source.path}"
            yield VideoFile(printable(name), folder, source)
        if not sources:
            kinds = ", ".join(f"{count} {ending}" for ending, count in others.most_common(5))
            yield f"no video in this folder (other files: {kinds or 'none'})"


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
        if (
            ending in _MORE_VIDEO
            or kind == "video"
            or (not kind and source.size and _sniff(folder, source))
        ):
            sources.append(source)
        else:
            others[ending or "(no ending)"] += 1
    return sorted(sources, key=lambda s: s.path), others


def open_source(folder: Folder, source: Source, *, part: bool = False) -> InputContainer:
    """Opens a source for decoding; the caller closes it.

    Args:
        part: Only a part will be read.

    Raises:
        DecodeError: FFmpeg cannot open it.
    """
    where = folder.below(source.path)
    if folder.is_local and printable(where) == where:
        return open_video(where)
    return open_video(open_bytes(folder, source, part=part))


def printable(path: str) -> str:
    """Returns a path as valid text; bytes that are not UTF-8 show as \\udcXX."""
    return path.encode("utf-8", "backslashreplace").decode("utf-8")


def open_bytes(folder: Folder, source: Source, *, part: bool = False) -> IO[bytes]:
    """Opens a source as a plain file; the caller closes it.

    A remote one is fetched whole when it is small and all of it is wanted, else in large blocks:
    FFmpeg reads in small ones, each of which would be a request.
    """
    where = folder.below(source.path)
    if folder.is_local:
        return Path(where).open("rb")
    remote = folder.fs.open_input_file(where)
    if source.size <= (BLOCK_BYTES if part else WHOLE_BYTES):
        with remote:
            return io.BytesIO(remote.read())
    return io.BufferedReader(remote, BLOCK_BYTES)  # type: ignore[arg-type]


def why_empty(folder: Folder, source: Source) -> str:
    """Returns what is wrong with a source of no bytes."""
    path = Path(folder.below(source.path))
    if not folder.is_local or path.is_file():
        return "empty file (0 bytes)"
    return "a link that leads nowhere" if path.is_symlink() else "not a file"


def _sniff(folder: Folder, source: Source) -> bool:
    """Tells whether FFmpeg finds a video in a file whose ending says nothing."""
    try:
        return call(_is_video, folder, source, limits=DEFAULT_LIMITS)
    except ChildFailed:
        return True  # so that it is not passed over in silence


def _is_video(folder: Folder, source: Source) -> bool:
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
        raise UserError(f"{folder.path}: no such folder of videos")
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
            if name.startswith("."):
                continue
            relative = path.relative_to(root).as_posix()
            if path.is_file():
                info = path.stat()
                yield Source(relative, info.st_size, info.st_mtime_ns)
            elif not path.is_socket():
                yield Source(relative, 0, 0)  # a link that leads nowhere, a pipe: told, not passed


def _walk_remote(folder: Folder) -> Iterator[Source]:
    try:
        infos = folder.fs.get_file_info(pafs.FileSelector(folder.root, recursive=True))
    except OSError as error:
        raise UserError(f"{folder.path}: cannot be listed: {error}") from error
    for info in infos:
        if info.type == pafs.FileType.File and not info.base_name.startswith("."):
            path = info.path.removeprefix(folder.root + "/")
            yield Source(path, info.size, info.mtime_ns or 0)
