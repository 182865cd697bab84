"""A finished model looks at video files as it looked at clips in training.

clips of many videos -> batch -> model -> windows of each video, in the order of the videos
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from dynamonet.model.config import PixelScale
from dynamonet.model.numbers import POWERS
from dynamonet.shards.loading import read_ahead
from dynamonet.shards.settings import default_processes
from dynamonet.training.settings import FormatName
from dynamonet.video.files import VideoFile
from dynamonet.video.transforms import ClipBatch, denormalise
from finetune.evaluation.evaluator import ViewPlan
from finetune.evaluation.finished import FinishedModel
from finetune.prediction.reading import Begun, CutClip, Ended, Message, Reading, VideoClips
from finetune.prediction.settings import PredictSettings
from finetune.prediction.sliding_window import WindowPlan

AHEAD = 16  # clips that each loader process keeps ready


@dataclass(frozen=True)
class ClipPrediction:
    """What the model says of one clip, or of a window: the mean over its clips."""

    probabilities: NDArray[np.float64] | None  # (N,), None without a classifier
    features: NDArray[np.float32]  # (D,), averaged over time and space
    dmr: NDArray[np.float32]  # (M,)
    motion: NDArray[np.float32]  # (K,), `numbers.NUMBERS`, with frames as the unit of time
    picture: NDArray[np.uint8] | None  # (P, P, 3) RGB, the frame in the middle


@dataclass(frozen=True)
class WindowPrediction:
    """What the model says of a window, half-open in seconds from the video's first frame."""

    start_seconds: float
    end_seconds: float
    frame_seconds: float  # between the frames of its clips
    seen: ClipPrediction


class Predictor(FinishedModel):
    """A finished model that looks at clips of videos."""

    def __init__(
        self,
        place: str,
        *,
        batch_size: int,
        pictures: bool,
        pixel_scale: PixelScale | None = None,
        device: Literal["auto", "cpu", "gpu"] = "auto",
        precision: FormatName = "auto",
    ) -> None:
        """Loads a model; see `FinishedModel`.

        Args:
            batch_size: Clips that go through the model together.
            pictures: Keep a picture of each window.
        """
        super().__init__(place, pixel_scale=pixel_scale, device=device, precision=precision)
        self.batch_size, self.pictures = batch_size, pictures

    @classmethod
    def of(cls, options: PredictSettings) -> Predictor:
        """Loads the model that is asked for; pictures are for filmstrips."""
        return cls(
            options.model,
            batch_size=options.batch_size,
            pictures=options.filmstrip is not None,
            pixel_scale=options.pixel_scale,
            device=options.device,
            precision=options.precision,
        )

    def clip_text(self) -> str:
        """Returns what the model is shown at a time, in words."""
        return f"clips of {self.config.num_frames} frames, {self.clips.spacing}"

    def reading(
        self,
        window_seconds: float | None = None,
        step_seconds: float | None = None,
        crops: int = 1,
    ) -> Reading:
        """Returns how its videos are read; see `WindowPlan.of` for window and step."""
        clip = self.config.num_frames, self.config.frame_px
        return Reading(self.frames, self.clips, *clip, window_seconds, step_seconds, crops)

    @torch.no_grad()
    def look(self, clips: list[CutClip]) -> list[ClipPrediction]:
        """Runs a batch of clips through the model; the crops of each are averaged.

        They weigh by how much changes in them.
        """
        crops = clips[0].pixels.shape[1] // self.config.frame_px
        pixels = torch.stack([part for clip in clips for part in clip.pixels.chunk(crops, 1)])
        count = len(pixels)
        batch = ClipBatch(pixels, None, torch.full((count,), -1), torch.arange(count))
        frames = batch.to(self.device).render()
        with self.precision.autocast():
            output = self.model(frames, predict_frames=False)
        pooled, dmr = output.pooled.float().cpu().numpy(), output.dmr.float().cpu().numpy()
        motion = dmr[:, :0]
        if self.config.tells_motion:
            numbers = self.model.numbers_of(frames, output).cpu().numpy()
            motion = numbers * np.float32(self.config.frame_seconds) ** np.array(POWERS)
        shares = pictures = [None] * count
        if self.classes:
            shares = output.probabilities.numpy()
        if self.pictures:
            middle = denormalise(frames[:, :, frames.shape[2] // 2]).permute(0, 2, 3, 1)
            pictures = (middle * 255).round().byte().cpu().numpy()
        every = zip(shares, pooled, dmr, motion, pictures, strict=True)
        views = [ClipPrediction(*row) for row in every]
        weights = ViewPlan(clips=1, crops=crops).weights(frames).cpu().numpy()
        groups = [slice(first, first + crops) for first in range(0, count, crops)]
        return [mean(views[group], weights[group]) for group in groups]


class _Windows:
    """The windows of one video, made of the clips that the model has seen so far."""

    def __init__(self, plan: WindowPlan, rate: float) -> None:
        self.plan, self.rate = plan, rate
        self.done: dict[int, ClipPrediction] = {}  # by first frame
        self.number = 0  # of the next window

    def whole(self, frames: int) -> Iterator[WindowPrediction]:
        """Yields those that lie in the first `frames` frames, whose clips are all done."""
        while (window := self.plan.whole(self.number)).end <= frames:
            yield self._prediction(window.start, window.end, window.clips)
            self.number += 1
            first = self.plan.whole(self.number).start
            self.done = {start: seen for start, seen in self.done.items() if start >= first}

    def last(self, frames: int) -> Iterator[WindowPrediction]:
        """Yields the window that ends with the video, if it needs one."""
        window = self.plan.last(self.number, frames)
        if window is not None:
            yield self._prediction(window.start, window.end, window.clips)

    def _prediction(self, start: int, end: int, clips: tuple[int, ...]) -> WindowPrediction:
        seen = mean([self.done[clip] for clip in clips])
        apart = self.plan.stride / self.rate
        return WindowPrediction(start / self.rate, end / self.rate, apart, seen)


def windows_of(
    clips: dict[int, ClipPrediction], frames: int, rate: float, reading: Reading
) -> list[WindowPrediction]:
    """Returns the windows of a video whose clips have all been looked at.

    Args:
        clips: By first frame.
        frames: Of the video.
        rate: Frames a second.
    """
    windows = _Windows(reading.plan(rate), rate)
    windows.done = clips
    found = [*windows.whole(frames)]
    windows.done = clips  # the last window may begin before those that are let go of
    return [*found, *windows.last(frames)]


def predict_windows(
    predictor: Predictor,
    videos: Sequence[VideoFile],
    reading: Reading,
    *,
    processes: int | None = None,
) -> Iterator[tuple[int, WindowPrediction | Ended]]:
    """Reads videos once, in loader processes, and runs clips of several of them together.

    Args:
        processes: That read; None = from the cores, 0 = this one.

    Yields:
        The number of a video with each of its windows, then with its end; in the order of the
        videos. What is held of the first unfinished one does not grow with its length.
    """
    if processes is None:
        processes = default_processes()
    data = VideoClips(videos, reading)
    messages = read_ahead(data, processes=min(processes, len(videos)), prefetch=AHEAD)
    return in_order(_as_they_come(predictor, messages, reading))


def _as_they_come(
    predictor: Predictor, messages: Iterable[Message], reading: Reading
) -> Iterator[tuple[int, WindowPrediction | Ended]]:
    windows: dict[int, _Windows] = {}
    waiting: list[CutClip] = []
    ended: dict[int, Ended] = {}  # whose last clips wait

    def look() -> Iterator[tuple[int, WindowPrediction | Ended]]:
        seen = predictor.look(waiting) if waiting else []
        for clip, prediction in zip(waiting, seen, strict=True):
            own = windows[clip.video]
            own.done[clip.start] = prediction
            yield from ((clip.video, window) for window in own.whole(clip.frames))
        waiting.clear()
        for end in [*ended.values()]:
            yield from finish(ended.pop(end.video))

    def finish(end: Ended) -> Iterator[tuple[int, WindowPrediction | Ended]]:
        own = windows.pop(end.video, None)
        if own is not None and end.failure is None:
            yield from ((end.video, window) for window in own.whole(end.frames))
            yield from ((end.video, window) for window in own.last(end.frames))
        yield end.video, end

    for message in messages:
        if isinstance(message, Begun):
            windows[message.video] = _Windows(reading.plan(message.rate), message.rate)
        elif isinstance(message, CutClip):
            waiting.append(message)
            if len(waiting) == predictor.batch_size:
                yield from look()
        elif any(clip.video == message.video for clip in waiting):
            ended[message.video] = message
        else:
            yield from finish(message)
    yield from look()


def in_order(
    found: Iterable[tuple[int, WindowPrediction | Ended]],
) -> Iterator[tuple[int, WindowPrediction | Ended]]:
    """Yields what belongs to video 0, then to 1, ...; keeps what comes before its turn."""
    early: dict[int, list[WindowPrediction | Ended]] = {}
    turn = 0
    for number, item in found:
        early.setdefault(number, []).append(item)
        while items := early.pop(turn, None):
            yield from ((turn, each) for each in items)
            if not isinstance(items[-1], Ended):
                break
            turn += 1


def mean(clips: list[ClipPrediction], weights: NDArray[np.float32] | None = None) -> ClipPrediction:
    """Averages what was seen of clips; the picture is that of the clip in the middle.

    Args:
        weights: Of each; None = the same.
    """
    if len(clips) == 1:
        return clips[0]

    def average(values: list[NDArray[Any]]) -> NDArray[Any]:
        return np.average(np.stack(values), 0, weights).astype(values[0].dtype)

    shares = [clip.probabilities for clip in clips if clip.probabilities is not None]
    return ClipPrediction(
        probabilities=average(shares) if shares else None,
        features=average([clip.features for clip in clips]),
        dmr=average([clip.dmr for clip in clips]),
        motion=average([clip.motion for clip in clips]),
        picture=clips[len(clips) // 2].picture,
    )
