"""A finished model looks at video files as it looked at clips in training.

file -> steady frames -> centre square -> canvas -> clips -> batch -> model -> windows
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from av.video.frame import VideoFrame
from numpy.typing import NDArray

from dynamonet.errors import UserError
from dynamonet.model.files import locate, read_description, weights_digest
from dynamonet.model.network import DynamoNet
from dynamonet.settings import validate
from dynamonet.shards.settings import ClipSettings, FrameSettings
from dynamonet.storage import Folder
from dynamonet.video.constant_rate import Damage, TimeRange, constant_rate_frames, output_rate
from dynamonet.video.decode import (
    Box,
    DecodeError,
    Planes,
    cut_planes,
    reason,
    video_stream,
)
from dynamonet.video.files import Source, open_source, why_empty
from dynamonet.video.letterbox import find_content
from dynamonet.video.sampling import stride_in_frames
from dynamonet.video.transforms import ClipBatch, View, denormalise, resize_planes, stack_views
from finetune.prediction.sliding_window import Clip, ClipCutter, Window, WindowPlan


@dataclass(frozen=True)
class ClipPrediction:
    """What the model says of one clip, or of a window: the mean over its clips."""

    probabilities: NDArray[np.float64] | None  # (N,), None without a classifier
    features: NDArray[np.float32]  # (D,), averaged over time and space
    dmr: NDArray[np.float32]  # (M,)
    picture: NDArray[np.uint8] | None  # (P, P, 3) RGB, the frame in the middle


@dataclass(frozen=True)
class WindowPrediction:
    """What the model says of a window, half-open in seconds from the video's first frame."""

    start_seconds: float
    end_seconds: float
    seen: ClipPrediction


class Predictor:
    """A model on its device, with all that was saved beside it about its input and its classes."""

    def __init__(self, place: str, *, batch_size: int, pictures: bool) -> None:
        """Loads a model onto the GPU that torch finds, else the CPU.

        Args:
            place: The model's folder, or its hub id.
            batch_size: Clips that go through the model together.
            pictures: Keep a picture of each window.

        Raises:
            UserError: no model there, or its description is damaged.
        """
        self.folder = locate(place)
        description = read_description(self.folder)
        self.digest = weights_digest(self.folder)
        origin = str(self.folder)
        self.clips = validate(ClipSettings, description.get("clips", {}), origin=origin)
        self.frames = validate(FrameSettings, description.get("frames", {}), origin=origin)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = DynamoNet.from_pretrained(self.folder).to(self.device)
        self.model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.config = model.config
        self.classes = _classes(
            self.folder, description.get("classes", []), self.config.num_classes
        )
        self.batch_size, self.pictures = batch_size, pictures

    def clip_text(self) -> str:
        """Returns what the model is shown at a time, in words."""
        text = f"clips of {self.config.num_frames} frames"
        if self.clips.stride_seconds:
            return f"{text}, {self.clips.stride_seconds:g} s apart"
        return (
            text if self.clips.stride_frames == 1 else f"{text}, {self.clips.stride_frames} apart"
        )

    @torch.no_grad()
    def look(self, clips: list[Clip]) -> list[ClipPrediction]:
        """Runs a batch of clips through the model."""
        side = min(1.0, self.config.frame_px / self.clips.canvas_px)
        batch = ClipBatch(
            luma=torch.from_numpy(np.stack([clip.luma for clip in clips])),
            chroma=torch.from_numpy(np.stack([clip.chroma for clip in clips])),
            views=stack_views([View.centred(side)] * len(clips)),
            label=torch.full((len(clips),), -1),
            row=torch.arange(len(clips)),
        )
        frames = batch.to(self.device).render(self.config.frame_px)
        output = self.model(frames, predict_frames=False)
        pooled, dmr = output.pooled.float().cpu().numpy(), output.dmr.float().cpu().numpy()
        shares = pictures = [None] * len(clips)
        if output.logits is not None:
            shares = output.logits.double().softmax(1).cpu().numpy()
        if self.pictures:
            middle = denormalise(frames[:, :, frames.shape[2] // 2]).permute(0, 2, 3, 1)
            pictures = (middle * 255).round().byte().cpu().numpy()
        return [ClipPrediction(*row) for row in zip(shares, pooled, dmr, pictures, strict=True)]


class VideoPredictions:
    """One pass over a video; iterating gives its windows in order, the rest is known after it."""

    def __init__(
        self,
        predictor: Predictor,
        folder: Folder,
        source: Source,
        *,
        window_seconds: float | None,
        step_seconds: float | None,
    ) -> None:
        """Prepares the pass; see `WindowPlan.of` for window and step."""
        self.predictor, self.folder, self.source = predictor, folder, source
        self.window_seconds, self.step_seconds = window_seconds, step_seconds
        self.rate = 0.0  # frames per second that the model sees
        self.frames = 0
        self.size = (0, 0)  # width, height of those frames
        self.clip_frames = 0  # that a clip covers
        self.damage: list[Damage] = []

    def __iter__(self) -> Iterator[WindowPrediction]:
        """Reads the video once.

        Raises:
            DecodeError: nothing of it can be decoded; the message is FFmpeg's.
            OSError: it cannot be read.
        """
        if not self.source.size:
            raise DecodeError(why_empty(self.folder, self.source))
        model, box = self.predictor, None
        if model.frames.crop_letterbox:
            with open_source(self.folder, self.source) as container:
                box = find_content(container, (container.duration or 0) / av.time_base)
        with open_source(self.folder, self.source) as container:
            if container.format.name == "tty":
                raise DecodeError("text, not a video")
            stream = video_stream(container)
            native_rate = stream.average_rate or stream.guessed_rate
            if not native_rate:
                raise DecodeError("no frame rate in the header")
            rate = output_rate(native_rate, model.frames.max_fps)
            self.rate = float(rate)
            plan = self._plan()
            self.clip_frames = plan.span
            whole = TimeRange(Fraction(0), None)
            frames = constant_rate_frames(
                container, whole, rate, model.frames.short_side_px, box=box
            )
            for window, seen in slide(model, self._squares(frames), plan):
                yield WindowPrediction(window.start / self.rate, window.end / self.rate, seen)
        if not self.frames:
            raise DecodeError(self.damage[0].reason if self.damage else "no frame can be decoded")

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

    def _plan(self) -> WindowPlan:
        model = self.predictor
        clips = model.clips
        stride = stride_in_frames(self.rate, clips.stride_frames, clips.stride_seconds)
        num_frames = model.config.num_frames
        return WindowPlan.of(num_frames, stride, self.rate, self.window_seconds, self.step_seconds)

    def _squares(self, frames: Iterable[VideoFrame | Damage]) -> Iterator[Planes]:
        """Cuts the middle square out of each frame and scales it to the canvas."""
        canvas_px = self.predictor.clips.canvas_px
        try:
            for frame in frames:
                if isinstance(frame, Damage):
                    self.damage.append(frame)
                    continue
                self.frames += 1
                self.size = (frame.width, frame.height)
                luma, u, v = cut_planes(frame, Box.centred_square(frame.height, frame.width))
                planes = Planes(luma[None].copy(), np.stack([u, v])[None])
                yield resize_planes(planes, canvas_px)
        except (FFmpegError, ValueError) as error:  # of a filter that refuses the frames
            self.damage.append(Damage(self.frames / self.rate, reason(error)))


def slide(
    predictor: Predictor, frames: Iterable[Planes], plan: WindowPlan
) -> Iterator[tuple[Window, ClipPrediction]]:
    """Yields each window of passing frames with the mean over its clips, in order.

    Holds the frames of one clip's span and of one batch of clips, however long the video.
    """
    cutter = ClipCutter(plan)
    waiting: list[Clip] = []
    done: dict[int, ClipPrediction] = {}
    number = 0

    def look() -> Iterator[tuple[Window, ClipPrediction]]:
        nonlocal number
        if waiting:
            seen = predictor.look(waiting)
            done.update(zip((clip.start for clip in waiting), seen, strict=True))
            waiting.clear()
        while (window := plan.whole(number)).end <= cutter.frames:
            yield window, mean([done[start] for start in window.clips])
            number += 1
            for start in [start for start in done if start < plan.whole(number).start]:
                del done[start]

    for frame in frames:
        clip = cutter.push(frame)
        if clip is not None:
            waiting.append(clip)
            if len(waiting) == predictor.batch_size:
                yield from look()
    yield from look()
    last = plan.last(number, cutter.frames)
    if last is None:
        return
    if last.clips[-1] not in done:
        waiting.append(cutter.closing())
        yield from look()
    yield last, mean([done[start] for start in last.clips])


def mean(clips: list[ClipPrediction]) -> ClipPrediction:
    """Averages what was seen of clips; the picture is that of the clip in the middle."""
    if len(clips) == 1:
        return clips[0]
    shares = [clip.probabilities for clip in clips if clip.probabilities is not None]
    return ClipPrediction(
        probabilities=np.stack(shares).mean(0) if shares else None,
        features=np.stack([clip.features for clip in clips]).mean(0),
        dmr=np.stack([clip.dmr for clip in clips]).mean(0),
        picture=clips[len(clips) // 2].picture,
    )


def _classes(folder: Path, names: list[str], count: int | None) -> list[str]:
    """Returns the class names, numbers where a model was saved without names."""
    if count is None:
        return []
    if names and len(names) != count:
        raise UserError(
            f"{folder}: {len(names)} class names for a classifier of {count}; model.json must "
            "list one name for each class, in the order of training"
        )
    return names or [f"class {number}" for number in range(count)]
