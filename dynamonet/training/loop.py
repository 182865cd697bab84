"""The training loop, the same for both stages; a stage brings a `Task`.

Everything random hangs on (seed, step, rank), everything read on (seed, epoch, row): a run that is
killed and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device, prepare_model
from torch import Tensor, nn

from dynamonet.errors import UserError
from dynamonet.shards.index import repair_command
from dynamonet.shards.order import sample_seed
from dynamonet.shards.reader import TrainingOrder, batches
from dynamonet.training.checkpoint import LoopState, load_checkpoint, save_checkpoint
from dynamonet.training.meters import Window
from dynamonet.training.precision import choose_precision
from dynamonet.training.ranks import Rank
from dynamonet.training.schedule import make_optimizer, rate_factor, set_rate
from dynamonet.training.task import Job
from dynamonet.video.transforms import ClipBatch, render


def train_worker(config: dict[str, Any]) -> None:
    """Runs on every Ray Train worker."""
    job: Job = pickle.loads(config["job"])
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size(), get_device())
    torch.set_num_threads(job.threads)
    Training(job, rank).run()


class Training:
    """One worker's training: build, restore, then step until done."""

    def __init__(self, job: Job, rank: Rank) -> None:
        self.job, self.rank, self.task = job, rank, job.task
        self.settings = settings = job.task.settings
        torch.manual_seed(settings.seed)
        self.model = self.task.build_model().to(rank.device)
        self.model = self.model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.optimizer = make_optimizer(self.task.rate_groups(self.model), settings.optimizer)
        self.reader = self.task.training_data()
        size, clips = self.model.config.frame_px, settings.loader.batch_size // rank.count
        shape = (clips, 3, self.model.config.num_frames, size, size)
        example = torch.zeros(shape, device=rank.device)
        self.precision = choose_precision(
            self.model, example, settings.precision, rank, settings.wrong_gradients
        )
        self.scaler = self.precision.scaler()
        self.state = self._restore()
        self.plan = self.reader.plan(settings.loader, rank.count, settings.seed)
        self.total_steps = settings.total_steps(self.plan.steps)
        self.compiled = settings.compiles(rank.device.type, self.total_steps)
        if self.compiled:
            self.model.trunk.compile()
        self.parallel = prepare_model(self.model)
        self.window = Window(rank)
        # a run that was killed may have logged more steps than its checkpoint holds
        resumed = self.state.step > 0 and rank.leads
        self.logged = job.run.last_steps() if resumed else {}
        self.failed = 0

    def run(self) -> None:
        """The loop itself."""
        self._announce()
        for step, batch in self._batches():
            self._step(step, batch)
            done = step + 1
            if self._is_due(done) or self._ends_epoch(done):
                self._log(done)
            if self.task.evaluates_after(done, self.total_steps):
                self._evaluate(done)
            if done % self.settings.checkpoint_every_steps == 0 or done == self.total_steps:
                self._save(done)

    def _batches(self) -> Iterator[tuple[int, ClipBatch]]:
        first, last, rank = self.state.step, self.total_steps, self.rank
        order = TrainingOrder(self.reader.rows, self.plan, rank.index, first, last)
        source = batches(
            self.reader,
            order,
            processes=self.job.processes,
            prefetch=self.settings.loader.prefetch_batches,
            pin_memory=rank.device.type == "cuda",
        )
        for step in range(first, last):
            yield step, self.window.next(source)

    def _step(self, step: int, batch: ClipBatch) -> None:
        self._count_failures(batch)
        rate = rate_factor(step, self.total_steps, self.settings.optimizer.warmup_share)
        set_rate(self.optimizer, rate)
        torch.manual_seed(sample_seed(self.settings.seed, step, self.rank.index))
        frames = render(batch.to(self.rank.device), self.model.config.frame_px)
        self.parallel.train()
        with self.precision.autocast():
            loss, sums = self.task.loss(
                self.parallel, frames, batch, ceiling=self._is_due(step + 1)
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.optimizer.clip_norm)
        if not torch.isfinite(norm) and not self.scaler.is_enabled():
            raise UserError(self._not_finite(step, loss, norm))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.window.add(step + 1, self.settings.optimizer.lr * rate, len(batch), sums)

    def _log(self, done: int) -> None:
        """Writes the window's steps to the tracking store, and the epoch's when one ends."""
        steps, speed = self.window.close()
        for _, sums in steps.values():
            for name, value in sums.items():
                self.state.epoch_sums[name] = self.state.epoch_sums.get(name, 0.0) + value
        rows = {
            step: {f"train/{k}": v for k, v in self.task.summarise(sums).items()} | {"train/lr": lr}
            for step, (lr, sums) in steps.items()
        }
        rows[done] |= {f"train/{name}": value for name, value in speed.items()}
        if self._ends_epoch(done):
            epoch = self.task.summarise(self.state.epoch_sums)
            rows[done] |= {f"epoch/{name}": value for name, value in epoch.items()}
            rows[done] |= {"epoch/number": done / self.plan.steps}
            self.state.epoch_sums = {}
        if self.rank.leads:
            self.job.run.log_metrics(rows, after=self.logged)
            if self._is_due(done):
                self.job.progress.step(done, self.total_steps, rows[done])

    def _evaluate(self, done: int) -> None:
        since = self.window.pause()
        self.model.eval()
        with torch.compiler.set_stance("force_eager"):  # few batches, of other sizes
            found = self.task.evaluate(self.model, self.rank, self.precision)
        if self.rank.leads:
            run = self.job.run
            run.log_metrics({done: found.metrics}, after=self.logged)
            for name, figure in found.figures.items():
                run.log_figure(figure, f"{name.format(step=done)}")
            for name, content in found.files.items():
                run.log_bytes(content, name)
            self.job.progress.note(done, found.metrics)
        self.window.skip(since)

    def _save(self, done: int) -> None:
        since = self.window.pause()
        self.state.step, self.state.samples = done, done * self.plan.global_batch
        self.state.global_batch = self.plan.global_batch
        name = f"step-{done:08d}"
        if not self.rank.leads:
            ray.train.report({}, checkpoint=None, checkpoint_dir_name=name)
        else:
            with tempfile.TemporaryDirectory() as folder:
                extra = {**self.task.describe(), "run": self.job.origin}
                save_checkpoint(Path(folder), self.model, self.optimizer, self.state, extra)
                checkpoint = ray.train.Checkpoint.from_directory(folder)
                metrics = {"step": done, "total_steps": self.total_steps}
                ray.train.report(metrics, checkpoint=checkpoint, checkpoint_dir_name=name)
        self.window.skip(since)

    def _restore(self) -> LoopState:
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return LoopState()
        with checkpoint.as_directory() as folder:
            return load_checkpoint(Path(folder), self.model, self.optimizer)

    def _announce(self) -> None:
        """Says on rank 0 what is about to run."""
        plan, reader = self.plan, self.reader
        if not self.rank.leads:
            return
        lines = [
            f"clips    {plan.num_samples:,} in {plan.steps:,} steps an epoch; "
            f"{plan.left_out:,} left out and {plan.repeated:,} repeated each epoch, "
            f"{reader.too_short:,} segments shorter than a clip",
            f"batch    {plan.global_batch} = {plan.batch_size} x {self.rank.count} workers, "
            f"{self.job.processes} loader processes and {self.job.threads} threads each",
            f"order    {self._order()}",
            f"device   {self.rank.device}, channels last, {self.precision}, "
            f"{'compiled' if self.compiled else 'not compiled'}",
        ]
        if self.state.step:
            lines.append(f"resumed  after step {self.state.step:,} of {self.total_steps:,}")
        for line in lines:
            self.job.progress.say(line)

    def _order(self) -> str:
        loader, cache = self.settings.loader, self.reader.tars.cache
        order = "all samples shuffled"
        if self.plan.windows is not None:
            order = f"samples shuffled within {loader.window_tars} tars at a time"
        kept = (
            "" if cache is None else f"; tars kept in {cache.home}, at most {loader.cache_gb:g} GB"
        )
        return order + kept

    def _count_failures(self, batch: ClipBatch) -> None:
        for failure in batch.failures:
            self.job.progress.say(f"unreadable, replaced: {failure}")
        self.failed += len(batch.failures)
        seen = max(1, (self.plan.steps * self.plan.batch_size))
        if self.failed > max(1, seen * self.settings.loader.max_failed_share):
            raise UserError(
                f"{self.failed} samples could not be read, more than "
                f"loader.max_failed_share = {self.settings.loader.max_failed_share:g} of an epoch. "
                f"Check the shards: {repair_command(self.reader.tars.folder)}"
            )

    def _is_due(self, done: int) -> bool:
        return done % self.settings.log_every_steps == 0 or done == self.total_steps

    def _ends_epoch(self, done: int) -> bool:
        return done % self.plan.steps == 0 or done == self.total_steps

    def _not_finite(self, step: int, loss: Tensor, norm: Tensor) -> str:
        return (
            f"step {step + 1}: loss {float(loss):g}, gradient norm {float(norm):g}: not finite. "
            "Nothing was updated. Lower optimizer.lr, or set precision: fp32; the last checkpoint "
            "stands."
        )
