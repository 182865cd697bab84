"""What a search found, as one HTML file with pictures inside; needs no network."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from av.error import FFmpegError
from jinja2 import Environment, PackageLoader

from dynamonet.storage import whole_file
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
class Card:
    """A window with its pictures, or with the reason why there are none."""

    hit: Hit
    pictures: list[str]  # data URIs
    reason: str


def write_gallery(file: Path, title: str, hits: Sequence[Hit]) -> None:
    """Writes the page; a video that cannot be read leaves a row without pictures.

    Raises:
        UserError: the file cannot be written.
    """
    environment = Environment(loader=PackageLoader("finetune.retrieval", ""), autoescape=True)
    page = environment.get_template("gallery.html.j2")
    text = page.render(title=title, cards=[_card(hit) for hit in hits])
    with whole_file(file) as growing:
        growing.write_text(text, "utf-8")


def _card(hit: Hit) -> Card:
    try:
        pictures = _pictures(hit)
    except (DecodeError, FFmpegError, OSError, ValueError) as error:
        why = str(error) if isinstance(error, DecodeError) else reason(error)
        return Card(hit, [], why)
    return Card(hit, pictures, "" if pictures else "no frame can be decoded")


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
            held = io.BytesIO()
            frame.to_image().save(held, "JPEG", quality=80)
            pictures.append(f"data:image/jpeg;base64,{base64.b64encode(held.getvalue()).decode()}")
            if len(pictures) == PICTURES:
                break
    return pictures
