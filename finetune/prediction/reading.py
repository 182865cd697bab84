"""Video files -> clips for a model, in loader processes; long videos stream.

file -> steady frames -> middle square -> the clips of its windows
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import av
import torch
from av.container import InputContainer
from av.error import FFmpegError
from av.video.frame import VideoFrame
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from dynamonet.shards.settings import ClipSettings, FrameSettings
from dynamonet.storage import StoreError
from dynamonet.video.constant_rate import Damage, TimeRange, constant_rate_frames, output_rate
from dynamonet.video.decode import Box, Bytes, DecodeError, reason, rgb, video_stream
from dynamonet.video.letterbox import find_content
from dynamonet.video.sampling import stride_in_frames
from dynamonet.video.transforms import View
from finetune.evaluation.evaluator import crop_offsets
from finetune.prediction.sliding_window import Clip, ClipCutter, WindowPlan


@dataclass(frozen=True)
class Reading:
    """How a model's videos are read: as its training's were."""

    frames: FrameSettings
    clips: ClipSettings
    num_frames: int  # of a clip
    frame_px: int
    window_seconds: float | None = None  # see `WindowPlan.of`
    step_seconds: float | None = None
    crops: int = 1  # squares of each frame, below one another in a clip's pixels

    def plan(self, rate: float) -> WindowPlan:
        """Returns where the windows of a video lie that gives `rate` frames a second."""
        clips = self.clips
        stride = stride_in_frames(rate, clips.stride_frames, clips.stride_seconds)
        return WindowPlan.of(self.num_frames, stride, rate, self.window_seconds, self.step_seconds)


@dataclass(frozen=True)
class Begun:
    """A video could be opened."""

    video: int  # its number
    rate: float  # frames a second that the model sees


@dataclass(frozen=True)
class CutClip:
    """A clip of a video."""

    video: int
    start: int  # its first frame's number
    frames: int  # that have been read
    pixels: Tensor  # (T, crops x S, S, 3) uint8, RGB


@dataclass
class Ended:
    """A video is over; why, if nothing of it could be read."""

    video: int
    failure: str | None = None
    frames: int = 0
    rate: float = 0.0
    size: tuple[int, int] = (0, 0)  # width, height of the frames
    clip_frames: int = 0  # that a clip covers
    damage: list[Damage] = field(default_factory=list)

    @property
    def notes(self) -> list[str]:
        """What the user should know about the windows."""
        notes = []
        if self.frames < self.clip_frames:
            covered = f"{self.frames} of {self.clip_frames} frames"
            notes.append(f"shorter than a clip ({covered}): its frames are repeated")
        if self.damage:
            first = self.damage[0]
            places = f"{len(self.damage)} places" if len(self.damage) > 1 else "one place"
            notes.append(
                f"damaged in {places}, first after {first.seconds:.2f} s ({first.reason}): "
                "windows there may be wrong"
            )
        return notes


Message = Begun | CutClip | Ended


class Readable(Protocol):
    """A video, or a segment of one."""

    def open(self) -> InputContainer: ...


class VideoClips(IterableDataset[Message]):
    """The clips of many videos; of several loader processes each takes every n-th video."""

    def __init__(self, videos: Sequence[Readable], reading: Reading) -> None:
        self.videos, self.reading = videos, reading

    def __iter__(self) -> Iterator[Message]:
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, len(self.videos), step):
            ended = Ended(number)
            try:
                yield from self._clips(number, ended)
                if not ended.frames:
                    why = ended.damage[0].reason if ended.damage else "no frame can be decoded"
                    ended.failure = why
            except (DecodeError, OSError, StoreError) as error:
                ended.failure = str(error)
            yield ended

    def _clips(self, number: int, ended: Ended) -> Iterator[Message]:
        """Reads a video once.

        Raises:
            DecodeError: nothing of it can be decoded; the message is FFmpeg's.
            OSError: it cannot be read.
        """
        video = self.videos[number]
        settings, box = self.reading.frames, None
        if settings.crop_letterbox:
            with video.open() as container:
                box = find_content(container, (container.duration or 0) / av.time_base)
        with video.open() as container:
            if container.format.name == "tty":
                raise DecodeError("text, not a video")
            stream = video_stream(container)
            native_rate = stream.average_rate or stream.guessed_rate
            if not native_rate:
                raise DecodeError("no frame rate in the header")
            rate = output_rate(native_rate, settings.max_fps)
            ended.rate, plan = float(rate), self.reading.plan(float(rate))
            ended.clip_frames = plan.span
            yield Begun(number, ended.rate)
            whole = TimeRange(Fraction(0), None)
            frames = constant_rate_frames(container, whole, rate, settings.short_side_px, box=box)
            for clip, seen in cut_clips(self._squares(frames, ended), plan):
                yield CutClip(number, clip.start, seen, torch.from_numpy(clip.pixels))

    def _squares(self, frames: Iterable[VideoFrame | Damage], ended: Ended) -> Iterator[Bytes]:
        """Cuts out of each frame what an evaluation sees of it, (crops x S, S, 3)."""
        side = self.reading.frame_px
        view = View.centred(min(1.0, side / self.reading.clips.canvas_px))
        offsets = crop_offsets(self.reading.crops)
        try:
            for frame in frames:
                if isinstance(frame, Damage):
                    ended.damage.append(frame)
                    continue
                ended.frames += 1
                ended.size = (frame.width, frame.height)
                size = frame.height, frame.width
                boxes = [view.box(Box.centred_square(*size, offset=each)) for each in offsets]
                squares = [view.scaled(rgb(frame, box)[None].copy(), side)[0] for box in boxes]
                yield torch.cat(squares).numpy()
        except (FFmpegError, ValueError) as error:  # of a filter that refuses the frames
            ended.damage.append(Damage(ended.frames / ended.rate, reason(error)))


def cut_clips(frames: Iterable[Bytes], plan: WindowPlan) -> Iterator[tuple[Clip, int]]:
    """Yields the clips of all windows with how many frames were read; the last may come twice.

    Holds the frames that a clip covers, however long the video.
    """
    cutter = ClipCutter(plan)
    for frame in frames:
        clip = cutter.push(frame)
        if clip is not None:
            yield clip, cutter.frames
    if plan.last(plan.num_whole(cutter.frames), cutter.frames) is not None:
        yield cutter.closing(), cutter.frames
