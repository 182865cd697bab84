"""An archive embedded with a kill in between, and searched; and a million embeddings searched.

make bench-archive           100,000 short videos, 25 minutes on two cores; VIDEOS=N for others,
                             ROWS=N embeddings to search among

Each measurement is saved as it ends, and what is embedded stays in runs/bench-archive until all
are made: a run that was stopped goes on.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table

from benchmarks.report import Figure, Kept, show, table
from demo.motion_videos import render_motion, write_video
from finetune.prediction.writers import FEATURES_SCHEMA, features_schema, part_files
from finetune.retrieval.features import read_features
from finetune.retrieval.index import NearestRows

ROOT = Path(__file__).parents[1]
HOME = ROOT / "runs/bench-archive"
RENDERED, FRAMES, SIDE = 504, 16, 64
SINGLE = 3_000  # videos that are embedded into one file, for comparison
KILLED_AT = 0.4  # of the videos
WIDTH, A_VIDEO, TOPICS, PART = 512, 100, 5_000, 50_000  # of the embeddings that are made up
QUERIES, TOP = 200, 20


def make_videos(folder: Path, count: int) -> None:
    """Renders short videos, and gives each many names."""
    growing = folder.with_name("growing")
    shutil.rmtree(growing, ignore_errors=True)
    growing.mkdir(parents=True)
    for first in range(0, min(RENDERED, count), 9):
        clips = render_motion(torch.arange(9), seed=first, num_frames=FRAMES, size_px=SIDE)
        for number, clip in enumerate(clips, first):
            write_video(growing / f"{number:06d}.mp4", clip, 12)
    for number in range(RENDERED, count):
        os.link(growing / f"{number % RENDERED:06d}.mp4", growing / f"{number:06d}.mp4")
    growing.rename(folder)


def run(entry: str, *words: object) -> float:
    """Runs a command to its end; returns seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, str(ROOT / entry), *map(str, words)], cwd=ROOT, check=True)
    return time.monotonic() - began


def rows_in(parts: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in part_files(parts))


def killed_midway(videos: Path, parts: Path, count: int) -> dict[str, float]:
    """Embeds until a share is there, and kills the driver."""
    shutil.rmtree(parts, ignore_errors=True)
    began = time.monotonic()
    words = [str(ROOT / "finetune/predict.py"), "motion", str(videos), "--features", str(parts)]
    driver = subprocess.Popen([sys.executable, *words], cwd=ROOT)
    while rows_in(parts) < KILLED_AT * count and driver.poll() is None:
        time.sleep(1)
    started = psutil.Process(driver.pid).children(recursive=True)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    seconds = time.monotonic() - began
    psutil.wait_procs(started, timeout=90)  # Ray's processes end by themselves
    return {"videos": rows_in(parts), "seconds": seconds}


def gone_on(videos: Path, parts: Path, count: int) -> dict[str, float]:
    """Embeds the rest, and counts the videos that are there twice or not at all."""
    before = rows_in(parts)
    seconds = run("finetune/predict.py", "motion", videos, "--features", parts)
    names = Counter(name for file in part_files(parts) for name in _column(file, "path"))
    wrong = sum(times != 1 for times in names.values()) + abs(count - len(names))
    return {"videos": count - before, "seconds": seconds, "wrong": wrong}


def into_one_file(videos: Path) -> dict[str, float]:
    """Embeds a few of them as predict.py does with no archive."""
    few = HOME / "few"
    shutil.rmtree(few, ignore_errors=True)
    few.mkdir()
    files = sorted(videos.iterdir())[:SINGLE]
    for file in files:
        os.link(file, few / file.name)
    words = ("--features", HOME / "few.parquet", "--quiet", "--overwrite")
    return {"videos": len(files), "seconds": run("finetune/predict.py", "motion", few, *words)}


def asked(parts: Path, *query: object) -> dict[str, float]:
    """Searches twice; the first search makes the index."""
    ask = ("finetune/search.py", "nearest", parts, "--query", *query)
    return {"first": run(*ask), "again": run(*ask)}


def archive(count: int, kept: Kept) -> tuple[Table, list[Figure]]:
    """Embeds an archive in two runs, the first of which is killed, and searches it."""
    videos, parts = HOME / f"videos-{count}", HOME / f"parts-{count}"
    if not (videos.is_dir() or "one file" in kept.rows):
        make_videos(videos, count)
    first = kept("killed", partial(killed_midway, videos, parts, count))
    again = kept("the same command again", partial(gone_on, videos, parts, count))
    found = kept("archive", partial(asked, parts, videos / "000007.mp4", "--top", 5))
    single = kept("one file", partial(into_one_file, videos))
    made = table(f"{count:,} videos of {FRAMES} frames", "", "videos", "seconds", "videos/s")
    for name, row in (
        ("until it was killed", first),
        ("the same command again", again),
        ("predict.py into one file", single),
    ):
        number, seconds = row["videos"], row["seconds"]
        made.add_row(name, f"{number:,.0f}", f"{seconds:.0f}", f"{number / seconds:.0f}")
    made.add_row("search.py, with making the index", f"{count:,}", f"{found['first']:.0f}", "")
    made.add_row("search.py again", f"{count:,}", f"{found['again']:.1f}", "")
    speed = (again["videos"] / again["seconds"]) / (single["videos"] / single["seconds"])
    return made, [
        Figure("twice_or_not_at_all", again["wrong"], 0, at_least=False),
        Figure("archive_over_one_file", speed, 1),
    ]


def _column(file: Path, name: str) -> list[str]:
    return pq.read_table(file, columns=[name])[name].to_pylist()


def make_up(parts: Path, count: int) -> None:
    """Writes embeddings: videos that lie around topics, windows around videos."""
    shutil.rmtree(parts, ignore_errors=True)
    parts.mkdir(parents=True)
    draw = np.random.default_rng(0)
    topics = draw.normal(size=(TOPICS, WIDTH)).astype(np.float32)
    schema = features_schema("made up", "none")
    for number, first in enumerate(range(0, count, PART)):
        size = min(PART, count - first)
        videos = -(-size // A_VIDEO)
        own = topics[draw.integers(TOPICS, size=videos)]
        own = own + 0.7 * draw.normal(size=own.shape).astype(np.float32)
        rows = np.repeat(own, A_VIDEO, 0)[:size]
        rows = rows + 0.5 * draw.normal(size=rows.shape).astype(np.float32)
        names = [f"/{first // A_VIDEO + i // A_VIDEO}.mp4" for i in range(size)]
        starts = np.arange(size) % A_VIDEO * 1.0
        ends = np.arange(0, (size + 1) * WIDTH, WIDTH, dtype=np.int32)
        columns = [names, names, starts, starts + 1]
        features = pa.ListArray.from_arrays(ends, rows.ravel())
        dmr = pa.ListArray.from_arrays(np.zeros(size + 1, np.int32), np.zeros(0, np.float32))
        made = [pa.array(column) for column in columns]
        table = pa.table([*made, features, dmr], names=FEATURES_SCHEMA.names).cast(schema)
        pq.write_table(table, parts / f"part-{number:05d}.parquet")


def made_up(count: int) -> dict[str, Any]:
    """Builds an index of embeddings, asks it, and compares all rows with the same queries."""
    parts = HOME / "made-up"
    make_up(parts, count)
    found: dict[str, Any] = asked(parts, "/17.mp4@3.5", "--top", TOP)
    windows = read_features(parts, "both")
    index = NearestRows.of(windows)
    queries = windows.rows[np.random.default_rng(1).choice(count, QUERIES, replace=False)]
    exact = NearestRows.exact(windows.rows, windows.scaling)
    nearest: dict[str, list[Any]] = {}
    for name, rows in (("all rows", exact), ("index", index)):
        began = time.monotonic()
        nearest[name] = [rows.search(query[None], TOP)[1][0] for query in queries]
        found[name] = (time.monotonic() - began) / QUERIES
    pairs = zip(nearest["all rows"], nearest["index"], strict=True)
    found["recall"] = float(np.mean([len(set(a) & set(b)) / TOP for a, b in pairs]))
    return found


def search(count: int, kept: Kept) -> tuple[Table, list[Figure]]:
    """Searches a million embeddings."""
    found = kept("made up", partial(made_up, count))
    made = table(f"{count:,} embeddings of {WIDTH} values, nearest {TOP}", "", "seconds", "recall")
    made.add_row("search.py, with making the index", f"{found['first']:.0f}", "")
    made.add_row("search.py again", f"{found['again']:.1f}", "")
    made.add_row("a query of the index", f"{found['index']:.4f}", f"{found['recall']:.3f}")
    made.add_row("a query of all rows", f"{found['all rows']:.4f}", "1")
    return made, [
        Figure("recall_at_20", found["recall"], 0.95),
        Figure("all_rows_over_index", found["all rows"] / found["index"], 10),
    ]


def main() -> None:
    """Prints the tables and the figures."""
    videos = int(os.environ.get("VIDEOS", "100000"))
    rows = int(os.environ.get("ROWS", "1000000"))
    kept = Kept(f"archive-{videos}-{rows}")
    searched, figures = search(rows, kept)
    embedded, more = archive(videos, kept)
    show([embedded, searched], [*more, *figures])
    shutil.rmtree(HOME, ignore_errors=True)


if __name__ == "__main__":
    main()
