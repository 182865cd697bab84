"""Loops to set a training beside: a plain one, the product's without Ray, and Ray without any."""

from __future__ import annotations

import os
import queue
import resource
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from benchmarks.alone import Untracked, training_alone
from benchmarks.report import Kept

if TYPE_CHECKING:
    from dynamonet.training.distributed.coordinator import Coordinator

_SMALL = (
    "--model.trunk.depth 10 --model.trunk.width 16 "
    "--model.trunk.stem_pool false --model.trunk.temporal_strides 1,2,2,1 "
    "--model.trunk.spatial_strides 2,2,2,1 --model.filters.cell_px 4"
)
# settings, clips of a step, steps
SIZES = {
    "8x48": (
        f"--model.num_frames 8 --model.frame_px 48 --clips.canvas_px 48 {_SMALL}",
        16,
        100,
    ),
    "16x64": (
        f"--model.num_frames 16 --model.frame_px 64 --clips.canvas_px 64 {_SMALL}",
        16,
        60,
    ),
    "default": ("--model.num_frames 16 --model.frame_px 112 --clips.canvas_px 128", 8, 25),
}
NEVER = 10**6  # steps
QUIET = f"--evaluate_every_steps {NEVER} --checkpoint_every_steps {NEVER}"


@dataclass(frozen=True)
class Bench:
    """What all runs share."""

    folder: Path
    shards: str
    kept: Kept
    size: str = "default"

    @property
    def model(self) -> str:
        return SIZES[self.size][0]

    @property
    def batch(self) -> int:
        return SIZES[self.size][1]

    @property
    def steps(self) -> int:
        return SIZES[self.size][2]

    @property
    def every(self) -> int:
        """Steps between lines of the log; what comes before the first is not counted."""
        return self.steps // 5

    def words(
        self, name: str, more: str = "", *, batch: int | None = None, every: int = 10
    ) -> list[str]:
        own = f"--shards {self.shards} --runs {self.folder}/{name} --name {name} {self.model}"
        steps = f"--epochs {NEVER} --max_steps {self.steps} --log_every_steps {every}"
        return f"{own} {steps} --loader.batch_size {batch or self.batch} {more}".split()


@dataclass(frozen=True)
class Usage:
    """What this process has used so far, or used in a step."""

    seconds: float
    page_faults: float
    system_seconds: float  # of the processor, spent in the kernel

    @classmethod
    def now(cls) -> Usage:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return cls(time.perf_counter(), used.ru_minflt, used.ru_stime)

    @classmethod
    def between(cls, first: Usage, last: Usage, steps: int) -> list[float]:
        """Returns seconds, page faults and seconds in the kernel of each step."""
        pairs = zip(vars(first).values(), vars(last).values(), strict=True)
        return [(after - before) / steps for before, after in pairs]


def plain_loop(bench: Bench, threads: int, *, fresh: bool = True) -> list[float]:
    """Returns what a step of the same arithmetic uses in a plain loop, no Ray anywhere.

    Args:
        fresh: False = every step has the first batch.
    """
    from dynamonet.command_line import load
    from dynamonet.shards.loading import batches
    from dynamonet.shards.order import TrainingOrder, sample_seed
    from dynamonet.shards.settings import default_processes
    from dynamonet.training.distributed.rank import Rank
    from dynamonet.training.numerics.precision import choose_precision
    from dynamonet.training.schedule import make_optimizer
    from pretrain.objective import Pretraining
    from pretrain.settings import PretrainSettings

    settings = load(PretrainSettings, bench.words("plain"), prog="")
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
    order = TrainingOrder(reader.rows, plan, 0, 0, bench.steps if fresh else 1)
    source = batches(reader, order, processes=default_processes(threads), prefetch=2)
    if not fresh:
        source = [next(source)] * bench.steps
    since = Usage.now()
    for step, batch in enumerate(source):
        if step == bench.every:
            since = Usage.now()
        torch.manual_seed(sample_seed(0, step, 0))
        frames = batch.render()
        model.train()
        with precision.autocast():
            loss, _ = task.loss(model, frames, batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.optimizer.clip_norm)
        optimizer.step()
    return Usage.between(since, Usage.now(), bench.steps - bench.every)


def product_loop(bench: Bench, threads: int) -> list[float]:
    """Returns what a step of the product's loop uses without Ray, in a thread as there."""
    from dynamonet.command_line import load
    from dynamonet.shards.settings import default_processes
    from pretrain.objective import Pretraining
    from pretrain.settings import PretrainSettings

    settings = load(PretrainSettings, bench.words("alone", QUIET, every=bench.every), prog="")
    marks: list[Usage] = []  # at each line of the log, when the loop asks whether its node goes

    def train() -> None:
        home = Path(tempfile.mkdtemp(dir=bench.folder))
        training_alone(
            Pretraining(settings, (bench.shards,)),
            Untracked(),
            home,
            queue.SimpleQueue(),
            threads=threads,
            processes=default_processes(threads),
            draining=lambda: bool(marks.append(Usage.now())),
        ).run()

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    return Usage.between(marks[0], marks[-1], bench.steps - bench.every)


def asleep(coordinator: Coordinator) -> None:
    """What an idle worker of Ray Train does."""
    from dynamonet.training.distributed.coordinator import BEAT_SECONDS

    while not coordinator.beat(0, 1, ""):
        time.sleep(BEAT_SECONDS)


@contextmanager
def idle_ray() -> Iterator[None]:
    """Has Ray Train's processes wait beside what is measured, as they do beside a training."""
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    from dynamonet import cluster
    from dynamonet.training.distributed.coordinator import Coordinator

    with cluster.connected():
        coordinator = Coordinator.start()
        trainer = TorchTrainer(
            lambda: asleep(coordinator),
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 1}),
        )
        thread = threading.Thread(target=trainer.fit, daemon=True)
        thread.start()
        while coordinator.describe_lagging().startswith("no worker"):
            time.sleep(1)
        yield
        coordinator.request_stop()
        thread.join()


@contextmanager
def environment(more: Mapping[str, str]) -> Iterator[None]:
    """Gives processes that start in the block more variables."""
    before = dict(os.environ)
    os.environ.update(more)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
