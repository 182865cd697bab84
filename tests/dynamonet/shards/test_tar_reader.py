"""Remote sets, through a real S3 server on this machine."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import subprocess
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import boto3
import pyarrow as pa
import pytest

from dynamonet import storage
from dynamonet.errors import UserError
from dynamonet.shards.cache import locked
from dynamonet.shards.loading import batches
from dynamonet.shards.order import TrainingOrder
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import ClipSettings, LoaderSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.shards.tar_reader import TarCache, TarReader, most_open
from dynamonet.storage import Folder, StoreError
from tests.conftest import ROOT


@pytest.fixture
def remote_set(
    shard_set: Path, store: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> tuple[str, list[str]]:
    """The shard set in a bucket, and the list of what was asked of the store since."""
    monkeypatch.setenv("DYNAMONET_CACHE", str(tmp_path / "cache"))
    client = boto3.client("s3")
    for file in shard_set.iterdir():
        if file.is_file():
            client.upload_file(str(file), "bucket", f"sets/made/{file.name}")
    asked: list[str] = []
    fetch = TarCache.fetch

    def counted(self: TarCache, folder: Folder, place: str, name: str, size: int) -> Path:
        if not (self.home / place / name).exists():
            asked.append(name)
        return fetch(self, folder, place, name, size)

    monkeypatch.setattr(TarCache, "fetch", counted)
    return f"{store}/sets/made", asked


def clips(path: str, loader: dict[str, object], processes: int = 0) -> list[tuple[int, bytes]]:
    """Returns (row, pixels) of two epochs."""
    settings = LoaderSettings.model_validate({"batch_size": 4, **loader})
    shards = ShardSet.open(path)
    source = ClipReader(
        shards,
        shards.rows(),
        ClipSettings(canvas_px=32),
        num_frames=9,
        loop_short=False,
        frame_px=28,
        loader=settings,
    )
    plan = source.plan(settings, 1, 3)
    order = TrainingOrder(source.rows, plan, 0, 0, 2 * plan.steps)
    found = batches(source, order, processes=processes, prefetch=2)
    return [
        (int(row), pixels.numpy().tobytes())
        for batch in found
        for row, pixels in zip(batch.row, batch.pixels, strict=True)
    ]


def test_a_remote_set_gives_the_same_clips_as_a_local_one(
    remote_set: tuple[str, list[str]], shard_set: Path
) -> None:
    path, asked = remote_set
    orders: list[dict[str, object]] = [
        {"shuffle": "shard_window", "window_shards": 2},
        {"shuffle": "samples"},
    ]
    for loader in orders:
        expected = clips(str(shard_set), loader)
        assert clips(path, loader) == expected
        assert sorted(set(asked)) == sorted(ShardSet.open(path).tars["shard"].to_pylist())
        assert clips(path, {**loader, "cache_gb": 0}) == expected  # ranges


@pytest.mark.slow
def test_loader_processes_share_one_cache(
    remote_set: tuple[str, list[str]], shard_set: Path, tmp_path: Path
) -> None:
    path, _ = remote_set
    loader: dict[str, object] = {"shuffle": "shard_window", "window_shards": 2}
    # in a process of its own: the server that forks loaders keeps the environment it began with
    script = (
        "import pickle, sys; from tests.dynamonet.shards import test_tar_reader as t\n"
        f"found = t.clips({path!r}, {loader!r}, processes=2)\n"
        "sys.stdout.buffer.write(pickle.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        check=True,
    )
    assert pickle.loads(done.stdout) == clips(str(shard_set), loader)
    names = {file.name for file in (tmp_path / "cache" / "tars").glob("*/*.tar")}
    assert names == set(ShardSet.open(path).tars["shard"].to_pylist())


def test_the_cache_keeps_to_its_limit_and_each_tar_is_fetched_once_an_epoch(
    remote_set: tuple[str, list[str]], shard_set: Path, tmp_path: Path
) -> None:
    path, asked = remote_set
    shards = ShardSet.open(path)
    largest = max(shards.tars["bytes"].to_pylist())
    limit = 2 * largest + 1
    assert sum(shards.tars["bytes"].to_pylist()) > limit
    loader: dict[str, object] = {"shuffle": "shard_window", "window_shards": 1}
    found = clips(path, {**loader, "cache_gb": limit / 1e9})
    assert found == clips(str(shard_set), loader)
    held = list((tmp_path / "cache" / "tars").glob("*/*.tar"))
    assert 0 < sum(file.stat().st_size for file in held) <= limit
    assert len(asked) <= 2 * shards.tars.num_rows


def test_a_tar_gets_its_name_only_while_nobody_counts(tmp_path: Path) -> None:
    counting, began = ExitStack(), threading.Event()

    class Store:
        fs = property(lambda self: self)

        def below(self, name: str) -> str:
            return name

        def open_input_stream(self, name: str) -> io.BytesIO:
            counting.enter_context(locked(tmp_path / ".lock"))  # another process begins to count
            began.set()
            return io.BytesIO(b"tar")

    cache = TarCache(tmp_path, 100)
    fetching = threading.Thread(
        target=cache.fetch, args=(cast("Folder", Store()), "set", "a.tar", 3)
    )
    fetching.start()
    assert began.wait(10)
    fetching.join(0.3)
    assert fetching.is_alive()
    assert [file.name for file in tmp_path.glob("set/*a.tar.incomplete")] == [".a.tar.incomplete"]
    assert not list(tmp_path.glob("set/*.tar"))
    counting.close()
    fetching.join()
    assert (tmp_path / "set/a.tar").read_bytes() == b"tar"
    assert not list(tmp_path.glob("set/*.incomplete"))


def test_fetches_at_once_wait_for_room_and_leftovers_take_none(tmp_path: Path) -> None:
    release, sizes = threading.Event(), list[int]()

    class Store:
        fs = property(lambda self: self)

        def below(self, name: str) -> str:
            return name

        def open_input_stream(self, name: str) -> io.BytesIO:
            release.wait(10)
            with locked(tmp_path / ".lock"):
                files = (*tmp_path.glob("set/*.tar"), *tmp_path.glob("set/.*.incomplete"))
                sizes.append(sum(file.stat().st_size for file in files))
            return io.BytesIO(b"tar")

    cache = TarCache(tmp_path, 2 * 3 + 1)
    (tmp_path / "set").mkdir()
    for name in ("a.tar", "of-a-killed-process.tar"):
        (tmp_path / "set" / f".{name}.incomplete").write_bytes(b"left behind")
        (tmp_path / "set" / f".{name}.lock").touch()
    store = cast("Folder", Store())
    threads = [
        threading.Thread(target=cache.fetch, args=(store, "set", f"{name}.tar", 3))
        for name in "abcd"
    ]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.3)
    release.set()
    for thread in threads:
        thread.join()
    assert len(sizes) == len(threads)
    assert max(sizes) <= cache.limit_bytes
    assert sum(file.stat().st_size for file in tmp_path.glob("set/*.tar")) <= cache.limit_bytes


def test_a_cache_that_cannot_hold_two_windows_is_refused(
    remote_set: tuple[str, list[str]],
) -> None:
    with pytest.raises(UserError, match="cannot hold two windows of tars"):
        clips(remote_set[0], {"shuffle": "shard_window", "window_shards": 2, "cache_gb": 1e-6})


def test_a_tar_that_changed_in_the_store_is_an_error_that_names_it(
    remote_set: tuple[str, list[str]], tmp_path: Path
) -> None:
    path, _ = remote_set
    folder = Folder.at(path)
    name = ShardSet.open(path).tars["shard"].to_pylist()[0]
    cache = TarCache(tmp_path / "other", 10**9)
    with pytest.raises(OSError, match=f"{name}: .* bytes received instead of 5"):
        cache.fetch(folder, "set", name, 5)
    assert [file.name for file in (tmp_path / "other" / "set").iterdir()] == [f".{name}.lock"]
    boto3.client("s3").delete_object(Bucket="bucket", Key=f"sets/made/{name}")
    with pytest.raises(UserError, match=f"(?s){name}: missing.*Rebuild only what is damaged"):
        ShardSet.open(path)


class Flaky:
    """A file whose reads fail a number of times, as those of a store do that answers 503."""

    def __init__(self, file: pa.NativeFile, faults: list[None]) -> None:
        self.file, self.faults = file, faults

    def read_at(self, size: int, offset: int) -> bytes:
        try:
            self.faults.pop()  # one for each thread that asks
        except IndexError:
            return self.file.read_at(size, offset)
        raise OSError("AWS Error UNKNOWN (HTTP status 503) during GetObject: Slow Down")


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Lets as many reads of remote tars fail as it has entries."""
    faults: list[None] = []
    opened = TarReader._opened
    monkeypatch.setattr(
        TarReader, "_opened", lambda self, name: Flaky(cast("Any", opened(self, name)), faults)
    )
    monkeypatch.setattr(storage, "_FIRST_WAIT", 0.01)
    return faults


def test_a_fault_of_the_network_replaces_no_sample(
    remote_set: tuple[str, list[str]], shard_set: Path, flaky: list[None]
) -> None:
    expected = clips(str(shard_set), {})
    flaky.extend([None] * 5)
    assert clips(remote_set[0], {"cache_gb": 0}) == expected
    assert not flaky


def test_a_store_that_does_not_answer_ends_the_worker_and_is_no_damage(
    remote_set: tuple[str, list[str]], flaky: list[None]
) -> None:
    flaky.extend([None] * 10**6)
    with pytest.raises(StoreError, match=r"(?s)s3://.*tried for 0.1 s: .*503.*Run the same"):
        clips(remote_set[0], {"cache_gb": 0, "retry_seconds": 0.1})


def test_a_tar_that_vanished_is_told_with_its_name(shard_set: Path, tmp_path: Path) -> None:
    shutil.copytree(shard_set, tmp_path / "set")
    shards = ShardSet.open(str(tmp_path / "set"))
    name = shards.tars["shard"].to_pylist()[0]
    (tmp_path / "set" / name).unlink()
    reader = ClipReader(shards, num_frames=9)
    with pytest.raises(UserError, match=rf"(?s)set/{name}: cannot be read: No such file.*--repair"):
        reader[0]


def test_many_tars_stay_open(shard_set: Path) -> None:
    shards = ShardSet.open(str(shard_set))
    reader = ClipReader(shards, num_frames=9)
    for row in range(len(shards)):
        reader[row]
    assert len(reader.sets.parts[0].tars._open) == shards.tars.num_rows
    assert most_open() >= 1024
