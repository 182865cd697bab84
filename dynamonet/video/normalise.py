"""What is changed in a video's frames so that all videos are alike, and the filters that do it.

    [deinterlace] -> [crop] -> fps -> [turn] -> [alpha over black] -> scale, [HDR -> SDR], BT.601

Each kind of change has a name, by which stage 1 counts it:

rotated        a display matrix says so, as phones write it
interlaced     fields woven into frames are taken apart (bwdif, one frame a pair of fields)
letterbox      black bars are cut off, where that is asked for
pixel_aspect   pixels were not square
odd_size       width or height was odd
full_range     0..255 becomes 16..235
deep_colour    more than 8 bits a sample
hdr            PQ or HLG becomes SDR: 203 cd/m2 is white, what is brighter is clipped
alpha          transparent pixels are laid over black
variable_rate  frames were not evenly spaced; they are placed by their time stamps
high_rate      frames above the greatest rate go
size_change    the size, or another of these, changed midway
guessed_times  frames had no time stamps; they follow at the rate of the header, or 25 a second
jumping_times  time stamps began anew, or jumped; what comes after follows what came before
other_streams  there are several moving pictures; the default, or largest, is taken
"""

from __future__ import annotations

import itertools
from fractions import Fraction

from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from dynamonet.video.decode import Box

KINDS = (
    "rotated interlaced letterbox pixel_aspect odd_size full_range deep_colour hdr alpha "
    "variable_rate high_rate size_change guessed_times jumping_times other_streams"
).split()
_ROTATIONS = {90: ("transpose", "cclock"), 180: ("rotate", "PI"), 270: ("transpose", "clock")}
_HDR = (16, 18)  # transfer functions PQ and HLG. Source: ITU-T H.273, table 3
_SDR = "out_transfer=bt709:out_primaries=bt709"


def kinds_of(stream: VideoStream, frame: VideoFrame) -> frozenset[str]:
    """Returns what a frame needs; interlacing, bars and time are not its own matter."""
    parts = frame.format.components
    is_full = frame.format.name.startswith("yuvj") or frame.color_range == ColorRange.JPEG
    kinds = {
        "rotated": angle(frame) != 0,
        "pixel_aspect": (stream.sample_aspect_ratio or 1) != 1,
        "odd_size": bool(frame.width % 2 or frame.height % 2),
        "full_range": is_full and not frame.format.is_rgb,
        "deep_colour": max(part.bits for part in parts) > 8,
        "hdr": stream.codec_context.color_trc in _HDR,
        "alpha": any(part.is_alpha for part in parts),
    }
    return frozenset(name for name, holds in kinds.items() if holds)


def upright_size(
    stream: VideoStream, frame: VideoFrame, box: Box | None, short_side: int
) -> tuple[int, int]:
    """Returns (width, height), both even, of a frame's square pixels with the given shorter side.

    A frame that is smaller keeps its size.
    """
    aspect = stream.sample_aspect_ratio or Fraction(1)
    width, height = (box.width, box.height) if box else (frame.width, frame.height)
    width = round(width * aspect)
    if angle(frame) in (90, 270):
        width, height = height, width
    factor = min(1.0, short_side / min(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


def filters(
    stream: VideoStream,
    frame: VideoFrame,
    kinds: frozenset[str],
    *,
    start: Fraction,
    rate: Fraction,
    size: tuple[int, int],
    box: Box | None,
) -> Graph:
    """Builds the filter chain for frames like this one.

    Args:
        start: Time in seconds of the first frame that comes out.
        size: (width, height) that comes out; kept when the source changes size midway.
        box: Part of the frame, as it is stored, to keep.
    """
    graph = Graph()
    chain = [
        graph.add_buffer(
            template=stream,
            width=frame.width,
            height=frame.height,
            format=frame.format,
            time_base=stream.time_base,
        )
    ]
    if "interlaced" in kinds:
        chain.append(graph.add("bwdif", "mode=send_frame:deint=interlaced"))
    if box:
        chain.append(graph.add("crop", f"{box.width}:{box.height}:{box.left}:{box.top}"))
    chain.append(graph.add("fps", f"fps={rate}:start_time={float(start)}"))
    turn = _ROTATIONS.get(angle(frame))
    if turn:
        chain.append(graph.add(*turn))
    if "alpha" in kinds:
        chain += [graph.add("format", "gbrap"), graph.add("premultiply", "inplace=1")]
    scale = f"{size[0]}:{size[1]}:flags=bicubic:out_color_matrix=bt601:out_range=tv"
    chain += [
        graph.add("scale", f"{scale}:{_SDR}" if "hdr" in kinds else scale),
        graph.add("setsar", "1"),
        graph.add("format", "yuv420p"),
        graph.add("buffersink"),
    ]
    for before, after in itertools.pairwise(chain):
        before.link_to(after)
    graph.configure()
    return graph


def angle(frame: VideoFrame) -> int:
    """Returns by how many degrees, 0 to 359, a frame is to be turned."""
    return round(frame.rotation) % 360
