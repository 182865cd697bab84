"""Progress bars of the entries of stage 1."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

OnProgress = Callable[[str, float, float], None]  # (what, done, total)
UNITS = {
    "reading headers": "videos/s",
    "checking sources": "videos/s",
    "checking tars": "MB/s",
    "fingerprints": "segments/s",
    "comparing": "segments/s",
}


@contextmanager
def progress_bars(console: Console) -> Iterator[OnProgress]:
    """Shows a bar with its rate for each kind of work that is reported."""
    columns = (TextColumn("{task.description:16}"), BarColumn(), TextColumn("{task.fields[rate]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        tasks: dict[str, tuple[TaskID, float]] = {}

        def on_progress(what: str, done: float, total: float) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total, rate=""), time.monotonic()
            task, began = tasks[what]
            spent = max(time.monotonic() - began, 1e-3)
            unit = UNITS.get(what, "x real time")
            progress.update(task, completed=done, total=total, rate=f"{done / spent:,.0f} {unit}")

        yield on_progress
