"""What Ray, logging, pictures and checkpoints cost a training, and what a second worker brings.

    make bench-training     35 minutes

Each run is saved to benchmarks/results as it ends, and is not made again. Steps are counted from
the first line of the log on, when all has started.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import Metric
from rich.table import Table

from benchmarks.bench_resume import make_shards
from benchmarks.loops import (
    QUIET,
    SIZES,
    Bench,
    environment,
    idle_ray,
    plain_loop,
    product_loop,
)
from benchmarks.nodes import step_of
from benchmarks.report import Figure, Kept, in_own_process, ratio, show, table
from dynamonet.training.perf.allocator import KEPT
from dynamonet.training.perf.timer import OTHER_PARTS, STEP_PARTS

ROUNDS = 3
PRODUCT = "the product: Ray Train, one worker"
PACE = 200  # steps between evaluations and checkpoints by default
# videos, and the share of them held out: the 64 clips that an evaluation takes by default
VIDEOS, HELD_OUT = 256, 0.25


class Logged:
    """The metrics of one finished pretraining."""

    def __init__(self, words: list[str]) -> None:
        from pretrain import run

        done = run.main(words)
        self.run_id, self.client = done.run.run_id, MlflowClient(done.run.uri)

    def history(self, name: str) -> list[Metric]:
        return sorted(self.client.get_metric_history(self.run_id, name), key=lambda m: m.step)

    def step_seconds(self) -> float:
        """Returns the seconds of a step, from the first line of the log to the last."""
        first, *_, last = self.history("train/clips_per_second")
        return (last.timestamp - first.timestamp) / 1000 / (last.step - first.step)

    def seconds(self, part: str, scale: float = 1.0) -> list[float]:
        return [m.value * scale for m in self.history(f"time/{part}")]


def with_ray(bench: Bench, name: str) -> list[float]:
    """Returns the seconds of a step of the product's loop on one Ray worker, nothing kept."""
    words = bench.words(name, f"{QUIET} --num_workers 1", every=bench.every)
    return [Logged(words).step_seconds()]


def cost_of_ray(bench: Bench) -> tuple[Table, list[Figure]]:
    """Begins with a plain loop, adds what the product adds, and ends with Ray; in turns."""
    cpus = len(os.sched_getaffinity(0))
    loops: dict[str, Callable[[], Any]] = {
        "plain loop, one batch": partial(plain_loop, bench, cpus, fresh=False),
        "plain loop": partial(plain_loop, bench, cpus),
        "the product's loop": partial(product_loop, bench, cpus),
    }

    def kept(loop: Callable[[], Any]) -> Any:
        with environment(KEPT):
            return in_own_process(loop)

    def beside_ray() -> Any:
        with idle_ray():
            return kept(loops["plain loop"])

    ways: dict[str, Callable[[], Any]] = {
        name: partial(in_own_process, loop) for name, loop in loops.items()
    }
    ways |= {f"{name}, memory kept": partial(kept, loop) for name, loop in loops.items()}
    ways["plain loop, memory kept, beside an idle Ray Train"] = beside_ray
    found: dict[str, list[list[float]]] = {}
    for number in range(ROUNDS):
        product = partial(with_ray, bench, f"{bench.size}-{number}")
        for way, measure in {**ways, PRODUCT: product}.items():
            name = f"{bench.size}: {way} {number}"
            found.setdefault(way, []).append(bench.kept(name, measure))
    title = f"{bench.size}: {bench.steps} steps of {bench.batch} clips"
    made = table(title, "", "ms a step", "page faults", "ms in the kernel")
    for way, rows in found.items():
        seconds, *rest = (statistics.median(column) for column in zip(*rows, strict=True))
        more = [f"{rest[0]:,.0f}", f"{1000 * rest[1]:.0f}"] if rest else []
        made.add_row(way, f"{1000 * seconds:.0f}", *more)

    def cost(way: str) -> float:
        product = [row[0] for row in found[PRODUCT]]
        return ratio(product, [row[0] for row in found[way]]) - 1

    return made, [
        Figure(f"ray_costs_{bench.size}", cost("plain loop, memory kept"), 0.03, at_least=False),
        Figure(f"product_over_plain_loop_{bench.size}", cost("plain loop"), 0.03, at_least=False),
    ]


def records(bench: Bench) -> dict[str, float]:
    """Returns the seconds of a step, of its share of the log, of an evaluation, a checkpoint."""
    kept = max(1, 2 * bench.steps // 5)
    more = f"--evaluate_every_steps {kept} --checkpoint_every_steps {kept}"
    found = Logged(bench.words("records", f"{more} --holdout_share {HELD_OUT}"))
    parts = {part: found.seconds(f"{part}_ms", 0.001) for part in STEP_PARTS}
    steps = {part: statistics.mean(values[1:] or values) for part, values in parts.items()}
    once = {part: statistics.mean(found.seconds(f"{part}_s")) for part in OTHER_PARTS}
    return {"step": sum(steps.values()) - steps["logging"], "logging": steps["logging"], **once}


def cost_of_records(bench: Bench) -> tuple[Table, list[Figure]]:
    """Sets what is logged, evaluated and saved at the settings' own pace against the steps."""
    found = bench.kept("records", partial(records, bench))
    seconds = {
        "steps": PACE * found["step"],
        "logging": PACE * found["logging"],
        "evaluation and pictures": found["evaluation"],
        "checkpoint": found["checkpoint"],
    }
    total = sum(seconds.values())
    made = table(f"{PACE} steps, one evaluation and one checkpoint", "", "s", "share")
    for name, value in seconds.items():
        made.add_row(name, f"{value:.1f}", f"{value / total:.1%}")
    return made, [Figure("records_cost", 1 - seconds["steps"] / total, 0.03, at_least=False)]


def rate(bench: Bench, workers: int, number: int) -> float:
    """Returns the clips/s of some workers with one core each and as many clips each."""
    each = f"--num_workers {workers} --cpus_per_worker 1 --loader.processes 0 {QUIET}"
    batch = bench.batch * workers
    words = bench.words(f"{workers}-{number}", each, batch=batch, every=bench.every)
    values = [m.value for m in Logged(words).history("train/clips_per_second")]
    return statistics.median(values[1:])


def scaling(bench: Bench) -> tuple[Table, list[Figure]]:
    """Runs one worker with one core, and two with one core and as many clips each."""
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(ROUNDS):
        for workers, found in rates.items():
            measure = partial(rate, bench, workers, number)
            found.append(bench.kept(f"{workers} workers {number}", measure))
    made = table(f"{bench.batch} clips a worker, one core each", "workers", "clips/s")
    for workers, values in rates.items():
        made.add_row(str(workers), f"{statistics.median(values):.1f}")
    return made, [Figure("two_workers_over_one", ratio(rates[2], rates[1]), 1.8)]


def seconds_to_first_step(bench: Bench, number: int) -> float:
    """Returns the seconds from the command to the console's first step."""
    began = time.perf_counter()
    words = bench.words(f"start-{number}", "--loader.processes 0", batch=4, every=1)
    driver = subprocess.Popen(
        [sys.executable, "pretrain/run.py", *words], stdout=subprocess.PIPE, text=True
    )
    assert driver.stdout is not None
    first = next(time.perf_counter() - began for line in driver.stdout if step_of(line))
    driver.send_signal(signal.SIGTERM)
    driver.communicate(timeout=300)
    return first


def start(bench: Bench) -> tuple[Table, list[Figure]]:
    """Starts a small training from nothing, in a process of its own."""
    small = replace(bench, size="8x48")
    found = [
        bench.kept(f"start {number}", partial(seconds_to_first_step, small, number))
        for number in range(ROUNDS)
    ]
    made = table("From the command to the first step, a small network", "", "s")
    made.add_row("pretrain/run.py", ", ".join(f"{value:.1f}" for value in found))
    figure = Figure("start_seconds", statistics.median(found), 12, at_least=False)
    return made, [figure]


def main() -> None:
    """Prints the tables and the figures."""
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        folder = Path(name)
        bench = Bench(folder, make_shards(folder, VIDEOS), Kept("training"))
        parts = [cost_of_ray(replace(bench, size=size)) for size in SIZES]
        parts += [measure(bench) for measure in (start, cost_of_records, scaling)]
    show([made for made, _ in parts], [figure for _, figures in parts for figure in figures])


if __name__ == "__main__":
    main()
