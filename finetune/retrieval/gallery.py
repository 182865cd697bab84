"""What a search found, as one HTML file with pictures inside; needs no network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from av.error import FFmpegError

from dynamonet.html import jpeg_uri, render
from dynamonet.storage import atomic_file
from dynamonet.video.constant_rate import Damage, TimeRange, constant_rate_frames
from dynamonet.video.decode import DecodeError, reason
from dynamonet.video.files import find_videos, open_source

PICTURES = 3  # of a window
SHORT_SIDE_PX = 104


class Hit(Protocol):
    """A window to show."""

    @property
    def path(self) -> str: ...
    @property
    def start_seconds(self) -> float: ...
    @property
    def end_seconds(self) -> float: ...


@dataclass(frozen=True)
class GalleryItem:
    """A window with its pictures, or with the reason why there are none."""

    hit: Hit
    pictures: list[str]  # data URIs
    reason: str


def write_gallery(file: Path, title: str, hits: Sequence[Hit]) -> None:
    """Writes the page; a video that cannot be read leaves a row without pictures.

    Raises:
        UserError: the file cannot be written.
    """
    items = [_item(hit) for hit in hits]
    text = render("finetune.retrieval", "gallery.html.j2", title=title, items=items)
    with atomic_file(file) as growing:
        growing.write_text(text, "utf-8")


def _item(hit: Hit) -> GalleryItem:
    try:
        pictures = _pictures(hit)
    except (DecodeError, FFmpegError, OSError, ValueError) as error:
        why = str(error) if isinstance(error, DecodeError) else reason(error)
        return GalleryItem(hit, [], why)
    return GalleryItem(hit, pictures, "" if pictures else "no frame can be decoded")


def _pictures(hit: Hit) -> list[str]:
    """Returns frames spread evenly over a window, as JPEG data URIs."""
    videos, failed = find_videos([hit.path])
    if len(videos) != 1:
        raise DecodeError(next(iter(failed.values()), "no such file"))
    video = videos[0]
    length = max(hit.end_seconds - hit.start_seconds, 0.05)
    rate = Fraction(PICTURES / length).limit_denominator(1000)
    start, end = (Fraction(s).limit_denominator(1000) for s in (hit.start_seconds, hit.end_seconds))
    pictures: list[str] = []
    with open_source(video.folder, video.source) as container:
        for frame in constant_rate_frames(container, TimeRange(start, end), rate, SHORT_SIDE_PX):
            if isinstance(frame, Damage):
                continue
            pictures.append(jpeg_uri(frame.to_image()))
            if len(pictures) == PICTURES:
                break
    return pictures
