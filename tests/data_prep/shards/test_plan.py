from __future__ import annotations

import itertools
from dataclasses import replace
from fractions import Fraction

from data_prep.settings import PrepSettings
from data_prep.shards.plan import ShardPlan, bytes_per_second, plan_shards
from data_prep.sources.probe import VideoInfo
from dynamonet.video.files import Source


def sources(count: int, seconds: float = 30.0) -> list[tuple[Source, VideoInfo]]:
    return [
        (Source(f"v{i}.mp4", 1, 1), VideoInfo(f"{i:032x}", seconds, Fraction(25), 320, 240))
        for i in range(count)
    ]


SETTINGS = PrepSettings(shard_mb=2.0)


def test_tars_are_about_the_size_asked_for() -> None:
    rate = bytes_per_second(sources(1)[0][1], SETTINGS.encode)

    def sizes(count: int, seconds: float) -> list[float]:
        settings = PrepSettings(shard_mb=32.0)
        plans = plan_shards(sources(count, seconds), {}, [], settings)
        return [plan.seconds * rate / 1e6 for plan in plans]

    for found in (sizes(8000, 5.0), sizes(2000, 30.0), sizes(20, 7200.0)):
        assert 16 < sum(found) / len(found) <= 32 and len(found) >= 16
        assert max(found) < 48


def test_adding_or_renaming_a_video_changes_its_own_tar_alone() -> None:
    def digests(found: list[tuple[Source, VideoInfo]]) -> dict[str, str]:
        plans = plan_shards(found, {}, [], SETTINGS)
        return {plan.name: plan.digest for plan in plans}

    before, after = digests(sources(2500, 5.0)), digests(sources(2501, 5.0))
    assert before.keys() == after.keys() and len(before) == 128
    assert sum(before[name] != after[name] for name in after) == 1
    (first, info), *others = sources(2500, 5.0)
    renamed = digests([(replace(first, path="elsewhere/name.mp4"), info), *others])
    assert sum(before[name] != renamed[name] for name in renamed) == 1


def test_a_set_that_is_divided_anew_finds_each_piece_in_one_older_tar() -> None:
    def plans(count: int) -> list[ShardPlan]:
        return plan_shards(sources(count, seconds=5.0), {}, [], SETTINGS)

    few, many = plans(500), plans(2000)
    assert (few[0].total, many[0].total) == (32, 128)
    for news, olds in ((many, few), (few, many)):
        held = {plan.name: {piece.digest for piece in plan.pieces} for plan in olds}
        for plan in news:
            names = plan.older_names([olds[0].total])
            assert len(names) == max(1, olds[0].total // plan.total)
            found = set().union(*(held[name] for name in names))
            common = {piece.digest for piece in plan.pieces} & set().union(*held.values())
            assert common <= found and (common or plan in many)


def test_a_long_video_is_cut_into_pieces_that_cover_it_and_stay_open_at_the_end() -> None:
    plans = plan_shards(sources(1, seconds=7200), {}, [], SETTINGS)
    pieces = sorted((p for plan in plans for p in plan.pieces), key=lambda p: p.first_segment)
    assert len(pieces) > 10
    assert pieces[0].time_range.start == 0 and pieces[-1].time_range.end is None
    for before, after in itertools.pairwise(pieces):
        assert before.time_range.end == after.time_range.start
        assert after.time_range.start / 10 == after.first_segment


def test_a_few_segments_are_taken_evenly_from_whole_ones() -> None:
    def taken(seconds: float, most: int | None, **more: object) -> list[tuple[float, float | None]]:
        settings = PrepSettings(max_segments_per_video=most, **more)  # type: ignore[arg-type]
        plans = plan_shards(sources(1, seconds), {}, [], settings)
        pieces = sorted((p for plan in plans for p in plan.pieces), key=lambda p: p.first_segment)
        assert all(p.most_segments == (1 if most else None) for p in pieces)
        stretches = [p.time_range for p in pieces]
        return [(float(s.start), None if s.end is None else float(s.end)) for s in stretches]

    assert taken(95.0, None)[-1][1] is None
    assert taken(95.0, 1) == [(40, 50)]
    assert taken(95.0, 3) == [(10, 20), (40, 50), (70, 80)]
    assert taken(7200.0, 1, shard_mb=1.0) == [(3600, 3610)]  # whatever the size of a tar
    assert taken(10.2, 1) == taken(0.0, 1) == taken(4.0, 3) == [(0, 10)]
    assert taken(25.0, 3) == [(0, 10), (10, 20), (20, 30)]
    assert taken(25.0, 2) == [(0, 10), (10, 20)]


def test_keys_are_unique_plain_and_in_the_order_of_the_source() -> None:
    (piece,) = plan_shards(sources(1, seconds=5.0), {}, [], SETTINGS)[0].pieces
    keys = [piece.key(n) for n in (0, 250, 30 * 3600)]
    assert keys == sorted(set(keys))
    assert all(key.replace("_", "").isalnum() for key in keys)


def test_the_digest_of_a_tar_hangs_on_content_and_settings_but_not_on_where_things_lie() -> None:
    def digests(**change: object) -> list[str]:
        settings = PrepSettings(**{"shard_mb": 2.0, **change})  # type: ignore[arg-type]
        return [p.digest for p in plan_shards(sources(10), {}, [], settings)]

    assert digests() == digests(output="elsewhere", name="other", runs="/far")
    assert digests() != digests(segment_seconds=5.0)
    assert digests() == digests(filters={"min_motion": 0.1})  # the tars hold all
    for change in ({"encode": {"crf": 30}}, {"cut": "shots"}):
        assert digests() != digests(**change)
    assert digests() != digests(max_segments_per_video=1)
