"""How long a file really is: its packets, read to the end, none of them decoded.

    header says           |----------------------------------------|
    times of packets      |--------->|--------->   (joined files begin anew)   end
    put one after another |--------------------|     ^ what is missing is told

A header is written by whoever made the file, and stays when the file is cut.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import av
from av import logging as av_logging
from av.container import InputContainer
from av.error import FFmpegError
from av.packet import Packet
from av.video.stream import VideoStream

from dynamonet.child_process import heartbeat
from dynamonet.video.constant_rate import MAX_GAP_SECONDS, STEP_BACK_SECONDS
from dynamonet.video.decode import reason

NO_LENGTH = ("mpegts", "mpeg")  # their headers tell no length; FFmpeg estimates it
MAX_HELD_SECONDS = 10  # from decoding a frame to showing it; more is a damaged time. Source: ours
SLACK_FRAMES = 1.5  # by which a whole file may be shorter than its header says


@dataclass(frozen=True)
class Length:
    """How long a video is."""

    seconds: float  # of its packets, put one after another where their times jump
    declared: float  # by the header, where that is more; 0 = it is not
    steady: bool  # all packets have times, which do not jump
    edited: bool  # some packets are for decoding others alone, and are not shown
    trouble: str  # what FFmpeg said last as it read them


def measure_length(container: InputContainer, stream: VideoStream, step: Fraction) -> Length:
    """Reads a file to its end, or to where it is damaged.

    Args:
        step: Seconds of a frame of the stream, for packets that tell no duration.
    """
    times = {each.index: _Times(float(step)) for each in container.streams}
    with av_logging.Capture() as log:
        packets, trouble = container.demux(), ""
        try:
            for packet in packets:
                heartbeat()
                if packet.size:  # else the end of a stream
                    times[packet.stream.index].add(packet)
        except (FFmpegError, OSError, ValueError) as error:
            trouble = reason(error)
    lines = [line.strip() for _, _, line in log if line.strip()]
    own, begun = times[stream.index], (container.start_time or 0) / av.time_base
    reached = max(each.end - begun for each in times.values())
    if container.format.name in NO_LENGTH:
        declared, found = 0.0, own.seconds
    elif stream.duration and stream.time_base:
        declared, found = float(stream.duration * stream.time_base), own.seconds
    else:  # of all streams, sound too
        declared, found = (container.duration or 0) / av.time_base, max(reached, own.seconds)
    is_short = declared - found > SLACK_FRAMES * step
    told = trouble or (lines[-1] if lines else "")
    return Length(own.seconds, declared if is_short else 0.0, own.steady, own.edited, told)


class _Times:
    """The times of one stream's packets."""

    def __init__(self, step: float) -> None:
        self.step = step
        self.begin: float | None = None  # of the present stretch, in which times do not jump
        self.last = self.end = self.before = self.done = 0.0  # last: begin of the last shown
        self.count, self.steady, self.edited = 0, True, False

    def add(self, packet: Packet) -> None:
        if packet.is_discard:  # cut off by an edit list
            self.edited = True
            return
        self.count += 1
        base = packet.time_base
        shown = packet.dts if packet.pts is None else packet.pts
        if shown is None or base is None:
            self.steady = False
            return
        at = float(shown * base)
        # packets come in the order of decoding, which the first ones of a stream may not tell
        decoded = self.before if packet.dts is None else float(packet.dts * base)
        if self.begin is not None and at - decoded > MAX_HELD_SECONDS:
            self.steady, at = False, decoded
        end = at + (float(packet.duration * base) if packet.duration else self.step)
        if self.begin is None:
            self.begin, self.last, self.end = at, at, end
            decoded = at if packet.dts is None else decoded
        elif -STEP_BACK_SECONDS <= decoded - self.before <= MAX_GAP_SECONDS:
            self.begin = min(at, self.begin)
            if at >= self.last:  # the durations of packets are those of their order in the file
                self.last, self.end = at, end
        else:
            self.steady, self.done = False, self.done + self.end - self.begin
            self.begin, self.last, self.end = at, at, end
        self.before = decoded

    @property
    def seconds(self) -> float:
        by_time = self.done + (0.0 if self.begin is None else self.end - self.begin)
        return by_time if self.steady else max(by_time, self.count * self.step)
