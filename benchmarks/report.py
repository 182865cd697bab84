"""What the benchmarks share: fair timing, a table, and one line a figure."""

from __future__ import annotations

import json
import multiprocessing
import statistics
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """One number that a claim rests on."""

    name: str
    value: float
    target: float
    at_least: bool = True  # else at most

    @property
    def passes(self) -> bool:
        return self.value >= self.target if self.at_least else self.value <= self.target

    def __str__(self) -> str:
        sign = ">=" if self.at_least else "<="
        verdict = "pass" if self.passes else "short"
        return f"{self.name} {self.value:.3g} {sign}{self.target:g} {verdict}"


class Kept:
    """Measurements of a long benchmark: each is saved as it ends, and not made again."""

    def __init__(self, topic: str) -> None:
        self.file = Path(__file__).parent / f"results/{topic}.json"
        self.rows: dict[str, Any] = {}
        if self.file.exists():
            self.rows = json.loads(self.file.read_text("utf-8"))

    def __call__(self, name: str, measure: Callable[[], Any]) -> Any:
        """Returns a measurement, which is made if it is not there; JSON must be able to hold it."""
        if name not in self.rows:
            began = time.monotonic()
            self.rows[name] = measure()
            print(f"{name}: {self.rows[name]}, {time.monotonic() - began:.0f} s", file=sys.stderr)
            self.file.write_text(json.dumps(self.rows, indent=1) + "\n", "utf-8")
        return self.rows[name]


def show(tables: Sequence[Table], figures: Sequence[Figure]) -> None:
    """Prints tables, then `name value target pass|short`, one line a figure."""
    console = Console(width=110)
    for table in tables:
        console.print(table)
    for figure in figures:
        print(figure)


def table(title: str, *columns: str) -> Table:
    """Makes a table whose first column is text and whose others are numbers."""
    made = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        made.add_column(column, justify="right" if place else "left")
    return made


def interleaved(
    candidates: Mapping[str, Callable[[], object]], *, rounds: int, warmups: int = 1
) -> dict[str, list[float]]:
    """Times candidates in turns, so that what else the machine does falls on all alike.

    Returns:
        Seconds of each round, by candidate.
    """
    for run in candidates.values():
        for _ in range(warmups):
            run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            before = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - before)
    return seconds


def ratio(above: Sequence[float], below: Sequence[float]) -> float:
    """Returns the median over rounds of one candidate's time by another's."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function of a module in a fresh process that may start others; returns its result."""
    fresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=fresh) as pool:
        return pool.submit(function, *arguments).result()


def peak_bytes() -> int:
    """Returns the most memory this process has held so far."""
    status = Path("/proc/self/status").read_text()  # getrusage would count the parent's too
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


class Watch:
    """The memory of a driver and of the largest of its tasks, with its child, once a second."""

    def __init__(self, driver: psutil.Process, *tasks: str) -> None:
        self.driver, self.tasks = driver, tasks  # how the tasks' processes are called
        self.rows: list[tuple[int, int]] = []
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while self.driver.is_running() and self.driver.status() != psutil.STATUS_ZOMBIE:
            try:
                self.rows.append((self.driver.memory_info().rss, self._largest()))
            except psutil.Error:
                return
            time.sleep(1)

    def _largest(self) -> int:
        most = 0
        for process in self.driver.children(recursive=True):
            try:
                if process.name().startswith(self.tasks):
                    family = [process, *process.children(recursive=True)]
                    most = max(most, sum(p.memory_info().rss for p in family))
            except psutil.Error:
                continue
        return most
