"""What Ray, logging, pictures and checkpoints cost a training, and what a second worker brings.

    make bench-training               an r18-class network, 25 steps a run, 40 minutes
    SIZE=small make bench-training    a small one, 60 steps a run
    STEPS=n                           other steps

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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from mlflow import MlflowClient
from mlflow.entities import Metric
from rich.table import Table

from benchmarks.bench_resume import make_shards
from benchmarks.nodes import step_of
from benchmarks.report import Figure, Kept, in_own_process, ratio, show, table
from dynamonet.training.perf.timer import OTHER_PARTS, STEP_PARTS

ROUNDS = 3
SIZES = {
    "r18": ("--model.num_frames 16 --model.frame_px 112 --clips.canvas_px 128", 8, 25),
    "small": (
        "--model.num_frames 8 --model.frame_px 64 --clips.canvas_px 64 --model.trunk.depth 10 "
        "--model.trunk.width 16 --model.trunk.stem_pool false "
        "--model.trunk.temporal_strides 1,2,2,1",
        16,
        60,
    ),
}
NEVER = 10**6  # steps
PACE = 200  # steps between evaluations and checkpoints by default
# videos, and the share of them held out: the 64 clips that an evaluation takes by default
VIDEOS, HELD_OUT = 256, 0.25


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    folder: Path
    shards: str
    model: str
    batch: int
    steps: int
    kept: Kept

    def words(self, name: str, more: str = "", batch: int | None = None) -> list[str]:
        own = f"--shards {self.shards} --runs {self.folder}/{name} --name {name} {self.model}"
        steps = f"--epochs {NEVER} --max_steps {self.steps}"
        return f"{own} {steps} --loader.batch_size {batch or self.batch} {more}".split()


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


def with_ray(bench: Bench, name: str) -> float:
    """Returns the seconds of a step of the product's loop on one Ray worker, nothing kept."""
    quiet = f"--evaluate_every_steps {NEVER} --checkpoint_every_steps {NEVER} --num_workers 1"
    every = max(1, bench.steps // 5)
    return Logged(bench.words(name, f"{quiet} --log_every_steps {every}")).step_seconds()


def without_ray(bench: Bench, threads: int, processes: int) -> float:
    """Returns the seconds of a step of the same arithmetic in a plain loop, no Ray anywhere."""
    from dynamonet.command_line import load
    from dynamonet.shards.loading import batches
    from dynamonet.shards.order import TrainingOrder, sample_seed
    from dynamonet.training.distributed.rank import Rank
    from dynamonet.training.numerics.precision import choose_precision
    from dynamonet.training.schedule import make_optimizer
    from pretrain.objective import Pretraining
    from pretrain.settings import PretrainSettings

    words = bench.words("plain")
    settings = load(PretrainSettings, words, prog="")
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    task, rank = Pretraining(settings, (bench.shards,)), Rank(0, 1, torch.device("cpu"))
    model = task.build_model().to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    size, config = settings.loader.batch_size, model.config
    example = torch.zeros(size, 3, config.num_frames, config.frame_px, config.frame_px)
    precision = choose_precision(model, example, settings.precision, rank)
    optimizer = make_optimizer([(model, 1.0)], settings.optimizer)
    reader = task.training_data()
    plan = reader.plan(settings.loader, 1, settings.seed)
    order = TrainingOrder(reader.rows, plan, 0, 0, bench.steps)
    warm_up, since = max(1, bench.steps // 5), 0.0
    for step, batch in enumerate(batches(reader, order, processes=processes, prefetch=2)):
        if step == warm_up:
            since = time.perf_counter()
        torch.manual_seed(sample_seed(0, step, 0))
        frames = batch.render()
        model.train()
        with precision.autocast():
            loss, _ = task.loss(model, frames, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm)
        optimizer.step()
    return (time.perf_counter() - since) / (bench.steps - warm_up)


def cost_of_ray(bench: Bench) -> tuple[Table, list[Figure]]:
    """Runs both loops in turns."""
    import ray

    from dynamonet import cluster
    from dynamonet.training.launch import default_processes

    with cluster.connected():
        cpus = int(ray.cluster_resources()["CPU"])
    seconds: dict[str, list[float]] = {"plain loop": [], "Ray Train, one worker": []}
    for number in range(ROUNDS):
        ways = {
            "plain loop": partial(
                in_own_process, without_ray, bench, cpus, default_processes(cpus)
            ),
            "Ray Train, one worker": partial(with_ray, bench, f"ray-{number}"),
        }
        for way, measure in ways.items():
            seconds[way].append(bench.kept(f"{way} {number}", measure))
    made = table(f"One worker, {bench.steps} steps of {bench.batch} clips", "", "ms a step")
    for name, values in seconds.items():
        made.add_row(name, f"{1000 * statistics.median(values):.0f}")
    cost = ratio(seconds["Ray Train, one worker"], seconds["plain loop"]) - 1
    return made, [Figure("ray_costs", cost, 0.03, at_least=False)]


def records(bench: Bench) -> dict[str, float]:
    """Returns the seconds of a step, of its share of the log, of an evaluation, a checkpoint."""
    kept = max(1, 2 * bench.steps // 5)
    more = f"--evaluate_every_steps {kept} --checkpoint_every_steps {kept} --log_every_steps 10"
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
    quiet = f"--evaluate_every_steps {NEVER} --checkpoint_every_steps {NEVER}"
    each = f"--num_workers {workers} --cpus_per_worker 1 --loader.processes 0 {quiet}"
    every = f"--log_every_steps {max(1, bench.steps // 5)}"
    words = bench.words(f"{workers}-{number}", f"{each} {every}", bench.batch * workers)
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
    words = bench.words(f"start-{number}", "--log_every_steps 1")
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
    small = replace(bench, model=f"{SIZES['small'][0]} --loader.processes 0", batch=4)
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
    size = os.environ.get("SIZE", "r18")
    model, batch, steps = SIZES[size]
    with tempfile.TemporaryDirectory(prefix="bench-training-") as name:
        folder = Path(name)
        steps = int(os.environ.get("STEPS", steps))
        kept = Kept(f"training-{size}-{steps}")
        bench = Bench(folder, make_shards(folder, VIDEOS), model, batch, steps, kept)
        parts = [measure(bench) for measure in (start, cost_of_ray, cost_of_records, scaling)]
    show([made for made, _ in parts], [figure for _, figures in parts for figure in figures])


if __name__ == "__main__":
    main()
