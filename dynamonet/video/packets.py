"""Where the packets of a segment lie: the sample table of an MP4 with one H.264 track.

    data -> moov / trak / mdia / minf / stbl -> offset, size and place in time of every packet

Opening a segment with FFmpeg's demuxer takes as long as decoding seven of its frames, because it
decodes some to learn what stage 1 has settled long ago. This reads the same tables in one go.

Source: ISO/IEC 14496-12 (box structure, 8.3 to 8.7) and 14496-15 (avcC).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from av.packet import Packet
from numpy.typing import NDArray

Ints = NDArray[np.int64]
_STBL = ("moov", "trak", "mdia", "minf", "stbl")


@dataclass(frozen=True)
class PacketTable:
    """The N packets of a segment, in the order in which a decoder takes them."""

    offsets: Ints  # (N,) in the data
    sizes: Ints  # (N,) bytes
    numbers: Ints  # (N,) number of the frame that a packet holds, in the order of showing
    keys: Ints  # packets that begin with a key frame, ascending, the first is 0
    extradata: bytes  # avcC: what a decoder must know before the first packet

    @classmethod
    def of(cls, data: bytes) -> PacketTable:
        """Reads the table of a whole segment.

        Raises:
            ValueError: it is damaged, or no MP4 of one H.264 track.
        """
        try:
            return _read(data)
        except KeyError as error:
            raise ValueError(f"not an MP4 segment: it has no box {error}") from None
        except (struct.error, ValueError, IndexError, StopIteration) as error:
            raise ValueError(f"not an MP4 segment: {error}") from None

    def packets_from(self, data: bytes, number: int) -> Iterator[Packet | None]:
        """Yields packets from the key frame at or before frame `number`; None ends the stream.

        The time of a packet is the number of its frame.
        """
        shown = self.numbers[self.keys]
        key = max(0, int(np.searchsorted(shown, number, side="right")) - 1)
        for place in range(int(self.keys[key]), len(self.sizes)):
            begin = int(self.offsets[place])
            packet = Packet(data[begin : begin + int(self.sizes[place])])
            packet.pts = int(self.numbers[place])
            yield packet
        yield None


def _read(data: bytes) -> PacketTable:
    start, end = 0, len(data)
    for name in _STBL:
        start, end = _children(data, start, end)[name]
    boxes = _children(data, start, end)

    def numbers(name: str, skip: int, columns: int, kind: str = ">u4") -> Ints:
        """Returns the rows of a table box, whose count stands `skip` bytes after its flags."""
        first, last = boxes[name]
        (count,) = struct.unpack_from(">I", data, first + 4 + skip)
        begin = first + 8 + skip
        if count * columns * 4 > last - begin:
            raise ValueError(f"box {name} ends before its {count} rows")
        rows = np.frombuffer(data, kind, count * columns, begin).astype(np.int64)
        return rows.reshape(count, columns) if columns > 1 else rows

    sizes = numbers("stsz", 4, 1)
    offsets = _offsets(sizes, numbers("stco", 0, 1), numbers("stsc", 0, 3))
    count = len(sizes)
    keys = numbers("stss", 0, 1) - 1 if "stss" in boxes else np.arange(count)
    if not count or not len(keys) or keys[0] != 0 or keys[-1] >= count:
        raise ValueError("it has no key frame at its start")
    if offsets.min() < 0 or (offsets + sizes).max() > len(data):
        raise ValueError("it ends before its packets")
    shown = np.arange(count)
    if "ctts" in boxes:  # packets are not in the order of showing
        step = numbers("stts", 0, 2)[0, 1]
        shifts = numbers("ctts", 0, 2, ">i4")
        if shifts[:, 0].sum() != count:  # before a damaged number takes gigabytes
            raise ValueError(f"{shifts[:, 0].sum()} packets have a time, {count} a size")
        times = shown * step + np.repeat(shifts[:, 1], shifts[:, 0])
        shown = np.empty(count, np.int64)
        shown[np.argsort(times, kind="stable")] = np.arange(count)
    return PacketTable(offsets, sizes, shown, keys, _extradata(data, *boxes["stsd"]))


def _offsets(sizes: Ints, chunks: Ints, runs: Ints) -> Ints:
    """Places packets: they stand one after another within a chunk.

    Args:
        chunks: Where each chunk begins.
        runs: (first chunk from 1, packets a chunk, description), valid until the next row.
    """
    lengths = np.diff(np.append(runs[:, 0] - 1, len(chunks)))
    per_chunk = np.repeat(runs[:, 1], lengths)
    if per_chunk.sum() != len(sizes):
        raise ValueError(f"{per_chunk.sum()} packets in its chunks, {len(sizes)} sizes")
    ends = np.cumsum(sizes)
    firsts = np.cumsum(per_chunk) - per_chunk
    before = (ends - sizes)[firsts]  # bytes of all packets before each chunk
    return ends - sizes + np.repeat(chunks - before, per_chunk)


def _extradata(data: bytes, start: int, end: int) -> bytes:
    """Returns avcC out of the first sample entry of stsd."""
    entry = next(_boxes(data, start + 8, end))
    if entry[0] not in ("avc1", "avc3"):
        raise ValueError(f"its codec is {entry[0]!r}, not H.264")
    first, last = _children(data, entry[1] + 78, entry[2])["avcC"]  # after VisualSampleEntry
    return data[first:last]


def _children(data: bytes, start: int, end: int) -> dict[str, tuple[int, int]]:
    """Returns where the content of each box lies, the first of each name."""
    boxes: dict[str, tuple[int, int]] = {}
    for name, first, last in _boxes(data, start, end):
        boxes.setdefault(name, (first, last))
    return boxes


def _boxes(data: bytes, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        head = 8
        if size == 1:
            (size,), head = struct.unpack_from(">Q", data, start + 8), 16
        if size < head or start + size > end:
            raise ValueError(f"box {kind.decode('latin-1')!r} leaves what holds it")
        yield kind.decode("latin-1"), start + head, start + size
        start += size
