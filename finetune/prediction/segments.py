"""What an archive consists of: videos, and segments of shard sets, which are read as videos are."""

from __future__ import annotations

from dataclasses import dataclass

from av.container import InputContainer

from dynamonet.digest import digest_of_bytes
from dynamonet.shards.card import CARD
from dynamonet.shards.shard_set import ShardSet
from dynamonet.shards.tar_reader import TarReader
from dynamonet.storage import Folder, absolute
from dynamonet.video.decode import DecodeError, open_video
from dynamonet.video.files import VideoFile, find_videos


@dataclass(frozen=True)
class Segment:
    """A segment of a shard set."""

    name: str  # of its video, below the folder that stage 1 was given
    path: str  # of that video
    key: str  # of the sample, behind its set's path
    begins: float  # where it begins in the video, in seconds
    tars: TarReader
    shard: str
    offset: int
    size: int
    digest: str

    def open(self) -> InputContainer:
        """Opens it for decoding; the caller closes it.

        Raises:
            DecodeError: the content is not what was written, or FFmpeg cannot open it.
        """
        data = self.tars.read(self.shard, self.offset, self.size)
        if digest_of_bytes(data) != self.digest:
            raise DecodeError(f"{self.key} in {self.shard}: the content is not what was written")
        return open_video(data)


Unit = VideoFile | Segment


def find_units(places: list[str]) -> tuple[list[Unit], dict[str, str]]:
    """Finds the videos and segments that paths stand for, and what is none with the reason."""
    units: dict[str, Unit] = {}
    failed: dict[str, str] = {}
    for place in places:
        if Folder.at(absolute(place)).size(CARD) is not None:
            units |= {unit.key: unit for unit in segments_of(ShardSet.open(absolute(place)))}
            continue
        videos, none = find_videos([place])
        units |= {video.path: video for video in videos}
        failed |= none
    return list(units.values()), failed


def name_of(unit: Unit) -> str:
    return unit.key if isinstance(unit, Segment) else unit.path


def segments_of(shards: ShardSet) -> list[Segment]:
    """Returns all segments of a set, in the order of its index."""
    place = shards.folder.path
    home = shards.card.settings.get("source")
    tars = TarReader(place, shards.digest, shards.tars)
    columns = "source key start_seconds shard offset size digest".split()
    rows = zip(*(shards.table[name].to_pylist() for name in columns), strict=True)
    return [
        Segment(source, f"{home}/{source}", f"{place}#{key}", begins, tars, *where)
        for source, key, begins, *where in rows
    ]
