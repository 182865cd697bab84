"""An archive embedded with a kill in between, and searched; and a million embeddings searched.

make bench-archive           100,000 short videos, 30 minutes on two cores; VIDEOS=N for others,
                             ROWS=N embeddings to search among
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from rich.table import Table

from benchmarks.report import Figure, show, table
from demo.motion_videos import render_motion, write_video
from finetune.prediction.writers import FEATURES_SCHEMA, features_schema, part_files
from finetune.retrieval.features import read_features
from finetune.retrieval.index import NearestRows

ROOT = Path(__file__).parents[1]
RENDERED, FRAMES, SIDE = 504, 16, 64
SINGLE = 3_000  # videos that are embedded into one file, for comparison
KILLED_AT = 0.4  # of the videos
WIDTH, A_VIDEO, TOPICS, PART = 512, 100, 5_000, 50_000  # of the embeddings that are made up
QUERIES, TOP = 200, 20


def make_videos(folder: Path, count: int) -> None:
    """Renders short videos, and gives each many names."""
    folder.mkdir()
    for first in range(0, RENDERED, 9):
        clips = render_motion(torch.arange(9), seed=first, num_frames=FRAMES, size_px=SIDE)
        for number, clip in enumerate(clips, first):
            write_video(folder / f"{number:06d}.mp4", clip, 12)
    for number in range(RENDERED, count):
        os.link(folder / f"{number % RENDERED:06d}.mp4", folder / f"{number:06d}.mp4")


def run(entry: str, *words: object) -> float:
    """Runs a command to its end; returns seconds."""
    began = time.monotonic()
    subprocess.run([sys.executable, str(ROOT / entry), *map(str, words)], cwd=ROOT, check=True)
    return time.monotonic() - began


def rows_in(parts: Path) -> int:
    return sum(pq.read_metadata(file).num_rows for file in part_files(parts))


def killed_midway(videos: Path, parts: Path, count: int) -> float:
    """Embeds until a share is there, and kills the driver; returns seconds."""
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
    return seconds


def archive(home: Path, count: int) -> tuple[Table, list[Figure]]:
    """Embeds an archive in two runs, the first of which is killed, and searches it."""
    videos, parts = home / "videos", home / "parts"
    make_videos(videos, count)
    first = killed_midway(videos, parts, count)
    kept = rows_in(parts)
    second = run("finetune/predict.py", "motion", videos, "--features", parts)
    names = Counter(name for f in part_files(parts) for name in _column(f, "path"))
    wrong = sum(times != 1 for times in names.values()) + abs(count - len(names))
    ask = ("finetune/search.py", "nearest", parts, "--query", videos / "000007.mp4", "--top", 5)
    built, asked = run(*ask), run(*ask)
    few = home / "few"
    few.mkdir()
    for file in sorted(videos.iterdir())[:SINGLE]:
        os.link(file, few / file.name)
    single = run(
        "finetune/predict.py", "motion", few, "--features", home / "few.parquet", "--quiet"
    )
    made = table(f"{count:,} videos of {FRAMES} frames", "", "videos", "seconds", "videos/s")
    for name, number, seconds in (
        ("until it was killed", kept, first),
        ("the same command again", count - kept, second),
        ("predict.py into one file", SINGLE, single),
    ):
        made.add_row(name, f"{number:,}", f"{seconds:.0f}", f"{number / seconds:.0f}")
    made.add_row("search.py, with making the index", f"{count:,}", f"{built:.0f}", "")
    made.add_row("search.py again", f"{count:,}", f"{asked:.1f}", "")
    speed = ((count - kept) / second) / (SINGLE / single)
    return made, [
        Figure("twice_or_not_at_all", wrong, 0, at_least=False),
        Figure("archive_over_one_file", speed, 1),
    ]


def _column(file: Path, name: str) -> list[str]:
    return pq.read_table(file, columns=[name])[name].to_pylist()


def make_up(parts: Path, count: int) -> None:
    """Writes embeddings: videos that lie around topics, windows around videos."""
    parts.mkdir()
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


def search(home: Path, count: int) -> tuple[Table, list[Figure]]:
    """Builds an index of embeddings, asks it, and compares all rows with the same queries."""
    parts = home / "made-up"
    make_up(parts, count)
    ask = ("finetune/search.py", "nearest", parts, "--query", "/17.mp4@3.5", "--top", TOP)
    built, asked = run(*ask), run(*ask)
    windows = read_features(parts, "both")
    index = NearestRows.of(windows)
    queries = windows.rows[np.random.default_rng(1).choice(count, QUERIES, replace=False)]
    exact = NearestRows.exact(windows.rows, windows.scaling)
    seconds, found = {}, {}
    for name, rows in (("all rows", exact), ("index", index)):
        began = time.monotonic()
        found[name] = [rows.search(query[None], TOP)[1][0] for query in queries]
        seconds[name] = (time.monotonic() - began) / QUERIES
    pairs = zip(found["all rows"], found["index"], strict=True)
    recall = float(np.mean([len(set(a) & set(b)) / TOP for a, b in pairs]))
    made = table(f"{count:,} embeddings of {WIDTH} values, nearest {TOP}", "", "seconds", "recall")
    made.add_row("search.py, with making the index", f"{built:.0f}", "")
    made.add_row("search.py again", f"{asked:.1f}", "")
    made.add_row("a query of the index", f"{seconds['index']:.4f}", f"{recall:.3f}")
    made.add_row("a query of all rows", f"{seconds['all rows']:.4f}", "1")
    return made, [
        Figure("recall_at_20", recall, 0.95),
        Figure("all_rows_over_index", seconds["all rows"] / seconds["index"], 10),
    ]


def main() -> None:
    """Prints the tables and the figures."""
    with tempfile.TemporaryDirectory(prefix="bench-archive-") as home:
        searched, figures = search(Path(home), int(os.environ.get("ROWS", "1000000")))
        embedded, more = archive(Path(home), int(os.environ.get("VIDEOS", "100000")))
    show([embedded, searched], [*more, *figures])


if __name__ == "__main__":
    main()
