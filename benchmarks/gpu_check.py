"""Does the path to a GPU work here? A table of what to trust, in about five minutes.

    python -m benchmarks.gpu_check              the default network, on the GPU
    SIZE=tiny python -m benchmarks.gpu_check    a tiny one; also where there is no GPU

It makes its own videos and leaves nothing behind. `docs/gpu.md` says what each line stands for.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from benchmarks.bench_resume import kill_after, losses, make_shards
from benchmarks.bench_training import Logged
from benchmarks.loops import NEVER
from benchmarks.report import Figure, show, table
from dynamonet import cluster

ON_GPU = torch.cuda.is_available()
TINY = (
    "--model.num_frames 8 --model.frame_px 32 --model.trunk.depth 10 --model.trunk.width 8 "
    "--model.trunk.stem_pool false --model.trunk.temporal_strides 1,2,2,1 --clips.canvas_px 32 "
    "--loader.batch_size 8 --loader.processes 1"
)
SIZES = {"default": ("", 60), "tiny": (TINY, 60)}
TOO_MANY = 2**13  # clips of a step, which no GPU takes at once
QUIET = f"--evaluate_every_steps {NEVER} --checkpoint_every_steps {NEVER} --epochs {NEVER}"


@dataclass
class Check:
    """Trainings of one size, each run when it is first asked for."""

    folder: Path
    shards: str
    model: str
    steps: int
    notes: dict[str, str] = field(default_factory=dict)

    def words(self, name: str, more: str = "") -> list[str]:
        own = f"--shards {self.shards} --runs {self.folder}/{name} --name {name}"
        steps = f"--max_steps {self.steps} --log_every_steps 1 --compile off {self.model}"
        return f"{own} {QUIET} {steps} {more}".split()

    def trained(self, name: str, more: str = "") -> list[float]:
        """Returns the losses of a training, which is run."""
        return [m.value for m in Logged(self.words(name, more)).history("train/loss")]

    @cached_property
    def usual(self) -> Logged:
        return Logged(self.words("usual"))

    def beside_usual(self, name: str, more: str) -> float:
        """Returns by how much the last losses of another training differ from the usual's."""
        usual = [m.value for m in self.usual.history("train/loss")]
        return apart(usual, self.trained(name, more))

    def rates(self) -> list[float]:
        """Returns clips/s of each step after the first few, in which queues fill."""
        return [m.value for m in self.usual.history("train/clips_per_second")][self.steps // 4 :]


def apart(a: list[float], b: list[float]) -> float:
    """Returns the relative difference of the means of the last ten."""
    first, second = statistics.mean(a[-10:]), statistics.mean(b[-10:])
    return abs(first - second) / first


def precision(check: Check) -> Figure:
    return Figure("precision", check.beside_usual("fp32", "--precision fp32"), 0.05, at_least=False)


def compiled(check: Check) -> Figure:
    return Figure("compile", check.beside_usual("on", "--compile on"), 0.05, at_least=False)


def memory_trial(check: Check) -> Figure:
    """Asks for more clips at once than fit; two steps must come to their end."""
    many = TOO_MANY if ON_GPU else 32
    if not ON_GPU:
        check.notes["memory_trial"] = "not tried: PyTorch does not tell on CPUs"
    more = f"--max_steps 2 --loader.batch_size {many} --loader.decoded_gb 0"
    return Figure("memory_trial", len(check.trained("memory", more)), 2)


def resume(check: Check) -> Figure:
    """Kills a driver midway, runs the same command again, and compares with the usual losses."""
    runs, every = check.folder / "killed", check.steps // 12
    words = check.words("killed", f"--checkpoint_every_steps {every}")
    kill_after(2, [sys.executable, "pretrain/run.py", *words])
    Logged(words)
    usual = {m.step: m.value for m in check.usual.history("train/loss")}
    found = losses(runs)
    worst = max(abs(found.get(step, 0.0) - loss) / loss for step, loss in usual.items())
    return Figure("resume", worst, 1e-3, at_least=False)


def throughput(check: Check) -> Figure:
    rates = check.rates()
    half = len(rates) // 2
    check.notes["throughput"] = f"{statistics.median(rates):,.0f} clips/s; late by early"
    early, late = statistics.median(rates[:half]), statistics.median(rates[half:])
    return Figure("throughput", late / early, 0.7)


def mfu(check: Check) -> Figure:
    values = [m.value for m in check.usual.history("train/mfu")][check.steps // 4 :]
    return Figure("mfu", statistics.median(values), 0.03 if ON_GPU else 0.0)


def waiting(check: Check) -> Figure:
    values = [m.value for m in check.usual.history("train/data_wait_share")][check.steps // 4 :]
    return Figure("wait_share", statistics.median(values), 0.05 if ON_GPU else 1.0, at_least=False)


CHECKS: tuple[Callable[[Check], Figure], ...] = (
    precision,
    compiled,
    memory_trial,
    resume,
    throughput,
    mfu,
    waiting,
)


def main() -> list[Figure]:
    """Prints the table and the figures."""
    model, steps = SIZES[os.environ.get("SIZE", "default")]
    device = torch.cuda.get_device_name() if ON_GPU else "CPU, no GPU found"
    made, figures = table(f"GPU check on {device}", "", "measured", "target", "verdict", "note"), []
    with tempfile.TemporaryDirectory(prefix="gpu-check-") as name, cluster.connected():
        check = Check(Path(name), make_shards(Path(name)), model, steps)
        for run in CHECKS:
            figure = run(check)
            name, value, target, verdict = str(figure).split()
            made.add_row(name, value, target, verdict, check.notes.get(name, ""))
            figures.append(figure)
    show([made], figures)
    return figures


if __name__ == "__main__":
    main()
