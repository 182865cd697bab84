"""The training loop, the same for both stages; a stage brings a `Task`.

Everything random depends on (seed, step, place in the batch), everything read on (seed, epoch,
row): a run that is killed and resumed takes the same steps as one that was not. Where the clock
ends the training (`max_minutes`), how many steps it takes and their rates depend on the machine.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch

from dynamonet.errors import UserError
from dynamonet.model.files import read_weights
from dynamonet.shards.loading import batches
from dynamonet.shards.order import TrainingOrder
from dynamonet.training.checkpoint.state import snapshot
from dynamonet.training.checkpoint.store import CheckpointStore
from dynamonet.training.distributed.coordinator import Heartbeat
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.buffered import BufferedLogger
from dynamonet.training.logs.console import duration
from dynamonet.training.logs.metrics import MetricWindow
from dynamonet.training.measuring import BrokenOff, Measuring
from dynamonet.training.numerics import nonfinite
from dynamonet.training.perf.copying import Copier
from dynamonet.training.perf.profiler import traced
from dynamonet.training.schedule import Clock, rate_factor, set_rate
from dynamonet.training.setup import set_up
from dynamonet.training.task import Job
from dynamonet.training.train_step import Gradients
from dynamonet.video.transforms import ClipBatch

logger = logging.getLogger(__name__)
TELLING = 2  # the first line of the log that a speed can be read from: the one before warms up


class StepRequest(NamedTuple):
    """What any rank wants done about the step at hand; the same on all ranks."""

    refuse: bool  # its gradients are not finite
    stop: bool
    save: bool
    spent: float  # share of the time, where that ends the training


class Trainer:
    """One worker's training: steps, evaluations and checkpoints until done."""

    def __init__(self, job: Job, rank: Rank, draining: Callable[[], bool] = lambda: False) -> None:
        """Args:
        draining: Tells whether a worker's node is about to go; asked on all ranks at once.
        """
        self.job, self.rank, self.task = job, rank, job.task
        self.settings = settings = job.task.settings
        self.draining, self.drained = draining, False
        self.store = CheckpointStore(job.home, settings.keep_checkpoints, self.task.best_by())
        self.tracking = BufferedLogger(job.run, job.home)
        self.setup = setup = set_up(self.task, rank, job.home)
        self.reader, self.plan, self.total_steps = setup.reader, setup.plan, setup.total_steps
        self.train_state, self.state = setup.train_state, setup.state
        self.train_step, self.perf = setup.train_step, setup.train_step.perf
        self.heartbeat = Heartbeat(job.coordinator, rank.index)
        clips, stopped = self.train_step.micro_batch, lambda: self.heartbeat.stop
        self.measuring = Measuring(rank, setup.precision, clips, job.processes, stopped)
        self.window = MetricWindow(rank)
        self.measured: dict[str, float] = {}  # by an evaluation at the present step
        self.clock, self.saved_at = Clock(rank, settings.max_minutes), time.monotonic()
        self.advised, self.logged = False, 0  # how often

    def run(self) -> None:
        """The loop itself."""
        if self.rank.is_main:
            self._start()
        self.clock.go_on(self.state.minutes)
        traces = self.settings.profile and self.rank.is_main
        tracer = traced(self.tracking, self.rank.device, traces)
        with self.heartbeat, self.store, self.tracking, tracer as step_traced:
            if self.state.unmeasured:
                if not self._measure(self.state.step):
                    return
                self._save(self.state.step)
            for step, batch in self._batches():
                gradients = self.train_step.gradients(step, batch)
                request = self._request(step, batch, gradients)
                self.clock.step(step + 1, self.total_steps, request.spent)
                if request.refuse:
                    self._refuse(step, batch, gradients)
                else:
                    self._update(step, batch, gradients)
                self.heartbeat.step = step + 1
                self.store.check()
                step_traced()
                if self.clock.share_done >= 1:
                    self.total_steps = step + 1
                if self._end_step(step + 1, request) or self.clock.share_done >= 1:
                    break
            self._close()

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
        copier = Copier(rank.device)
        for step in range(first, last):
            batch = next(source)
            self.perf.lap("wait")
            yield step, copier.copied(batch)

    def _request(self, step: int, batch: ClipBatch, gradients: Gradients) -> StepRequest:
        """Asks all ranks what is to be done about this step, and what of its clips was damaged.

        Raises:
            UserError: too many of this epoch were.
        """
        drains = not self.drained and self._is_due(step + 1) and self.draining()
        saves = drains or self._save_is_due()
        for failure in batch.failures:
            logger.warning(f"damaged, replaced: {failure}")
        asked = self.heartbeat.stop, saves, self.clock.spent, len(batch.failures)
        stop, save, spent, damaged, *broken = self.rank.total(*asked, on_device=gradients.broken)
        bad_loss, bad_gradients = map(bool, broken)
        refuse = self.train_step.refuses(bad_loss=bad_loss, bad_gradients=bad_gradients)
        before = self.state.damaged if step % self.plan.steps else 0
        self.state.damaged = before + int(damaged)
        most = self.settings.loader.max_failed_share
        self.reader.sets.allow_damaged(self.state.damaged, self.plan.samples_read, most)
        self.drained = self.drained or drains
        return StepRequest(refuse, bool(stop), bool(save), spent)

    def _save_is_due(self) -> bool:
        """Tells whether a checkpoint is due by the clock."""
        minutes = self.settings.checkpoint_every_minutes
        spent = time.monotonic() - self.saved_at
        return self.rank.is_main and minutes is not None and spent >= 60 * minutes

    def _update(self, step: int, batch: ClipBatch, gradients: Gradients) -> None:
        settings = self.settings.optimizer
        middle = self.clock.share_done * (step + 0.5) / (step + 1)  # of this step
        factor = rate_factor(middle, settings.warmup_share)
        set_rate(self.train_state.optimizer, factor)
        self.train_step.apply(gradients)
        self.window.add(step + 1, settings.lr * factor, len(batch), gradients.sums)

    def _refuse(self, step: int, batch: ClipBatch, gradients: Gradients) -> None:
        """Leaves the weights as they are, and stops the run unless such steps are skipped."""
        self.state.skipped += 1
        skips, most = self.settings.on_nonfinite == "skip", self.settings.max_skipped_share
        allowed = max(1, most * self.clock.expected_steps(step + 1))
        stops = not skips or self.state.skipped > allowed
        kept = stops or self.state.skipped <= nonfinite.MAX_KEPT
        text = self._replay(step, batch, gradients) if kept else ""
        self.train_step.discard()
        if stops:
            how = f"{self.state.skipped} such steps, more than max_skipped_share = {most:g}. "
            raise UserError(text + (how if skips else "") + nonfinite.REMEDY)
        logger.warning(text or f"step {step + 1}: not finite, skipped")

    def _replay(self, step: int, batch: ClipBatch, gradients: Gradients) -> str:
        """Writes the step to the run's folder and returns what is wrong with it, on which rank."""
        found = self.train_step.replay(step, batch)
        rows = map(self.reader.sets.find, batch.row.tolist())
        samples = [(row.shard, row.key) for row, _ in rows]
        facts = {"step": step + 1, "seed": self.settings.seed, "samples": samples}
        facts["gradient_norm"] = repr(float(gradients.norm))
        model = self.train_state.model if self.rank.is_main else None
        folder = nonfinite.write_replay(
            self.job.home, self.rank.index, batch, facts | found.facts(), model
        )
        told = self.rank.gather((found, samples))
        return nonfinite.diagnosis(told, step + 1, folder)  # type: ignore[arg-type]

    def _end_step(self, done: int, request: StepRequest) -> bool:
        """Logs, evaluates and saves after a step, as far as each is due; tells whether to stop."""
        evaluates = self.task.evaluates_after(done, self.total_steps)
        saves = request.stop or request.save or done == self.total_steps
        saves = saves or done % self.settings.checkpoint_every_steps == 0
        saves = saves or (evaluates and self.task.best_by() is not None)
        if self._is_due(done) or self._ends_epoch(done) or saves:
            self._log(done)
        self.perf.lap("logging")
        stops = request.stop
        if evaluates and not self._measure(done):
            stops = saves = True
        if saves:
            self._save(done)
            self.perf.lap("checkpoint")
        return stops

    def _log(self, done: int) -> None:
        """Writes the window's steps to the tracking store, and the epoch's when one ends."""
        steps, clips = self.window.close()
        for _, sums in steps.values():
            for name, value in sums.items():
                self.state.epoch_sums[name] = self.state.epoch_sums.get(name, 0.0) + value
        rows = {
            step: {f"train/{k}": v for k, v in self.task.summarise(sums).items()} | {"train/lr": lr}
            for step, (lr, sums) in steps.items()
        }
        row = rows.setdefault(done, {})
        row |= self.perf.close(len(steps), clips)
        if self.state.skipped:
            row |= {"train/skipped_steps": float(self.state.skipped)}
        if self._ends_epoch(done) and self.state.epoch_sums:
            epoch = self.task.summarise(self.state.epoch_sums) | {"number": done / self.plan.steps}
            row |= {f"epoch/{name}": value for name, value in epoch.items()}
            self.state.epoch_sums = {}
        if self.rank.is_main:
            self.tracking.metrics(rows)
            if self._is_due(done):
                self.job.progress.step(done, self.clock.expected_steps(done), row)
                self._tell_length(done, row)
            if not self.advised and self.perf.can_advise(last=done == self.total_steps):
                self._advise()

    def _tell_length(self, done: int, row: dict[str, float]) -> None:
        """Says how long the training will take and what that buys, once its speed is known."""
        self.logged += 1
        rate, batch = row.get("train/clips_per_second"), self.plan.global_batch
        clips = self.clock.expected_steps(done) * batch
        verdict = self.task.verdict(clips)
        if self.logged == TELLING and rate and verdict:
            left = duration((clips - done * batch) / rate)
            logger.info(f"length   {clips:,} clips seen in all, {left} left; {verdict}")

    def _advise(self) -> None:
        """Names what holds the training up, once."""
        advice = self.perf.advice(self.setup.perf_context(self.job))
        self.advised = True
        logger.info(f"speed    {advice}")
        self.tracking.artifact(lambda: self.job.run.tag(advice=advice))

    def _measure(self, done: int) -> bool:
        """Evaluates; tells whether it came to its end, else the next start does it again."""
        try:
            self._evaluate(done)
        except BrokenOff:
            self.state.unmeasured = True
            return False
        self.state.unmeasured = False
        self.perf.lap("evaluation")
        return True

    def _evaluate(self, done: int) -> None:
        model = self.train_state.result.eval()
        self.rank.share_buffers(model)  # each rank has statistics of its own batches
        with torch.compiler.set_stance("force_eager"):  # few batches, of other sizes
            evaluation = self.task.evaluate(model, self.measuring)
        self.measured = evaluation.metrics
        if self.rank.is_main:
            self.tracking.evaluation(done, evaluation)
            self.job.progress.note(done, evaluation.metrics)

    def _test(self) -> None:
        """Measures what the run keeps: its last weights, or those of its best checkpoint."""
        model = self.train_state.result.eval()
        if self.task.keeps_best():
            best = self.rank.broadcast(self.store.best() if self.rank.is_main else self.job.home)
            model.load_state_dict(read_weights(best))
        else:
            self.rank.share_buffers(model)
        evaluation = self.task.test(model, self.measuring)
        if evaluation is not None and self.rank.is_main:
            self.tracking.evaluation(self.total_steps, evaluation)
            self.job.progress.note(self.total_steps, evaluation.metrics)

    def _save(self, done: int) -> None:
        """Copies the state and lets a thread write it; only rank 0 does."""
        state, batch = self.state, self.plan.global_batch
        state.step, state.total_steps = done, self.total_steps
        state.samples, state.global_batch = done * batch, batch
        state.minutes, state.unsent = self.clock.minutes, self.tracking.unsent()
        if self.rank.is_main:
            extra = {**self.task.describe(), "run": self.job.origin}
            self.store.begin(done, snapshot(self.train_state, state, extra), self.measured)
        self.measured, self.saved_at = {}, time.monotonic()

    def _solve(self) -> None:
        """Does a training without steps, unless a stop is asked for.

        A model that nothing is taught is a result too.
        """
        with contextlib.suppress(BrokenOff):
            found = self.task.solve(self.train_state.result.eval(), self.measuring)
            if self.rank.is_main:
                self.tracking.metrics({0: found})
            if self.task.keeps_best():
                self._evaluate(0)
            self._save(0)

    def _close(self) -> None:
        if not self.total_steps:
            self._solve()
        if self.rank.is_main:
            self.store.wait()
        if self.state.step == self.total_steps and not self.state.unmeasured:
            if self.rank.is_main:
                spent = {"minutes": self.clock.minutes, "parameters": self.train_state.parameters}
                self.tracking.metrics({self.total_steps: {f"run/{k}": v for k, v in spent.items()}})
            with contextlib.suppress(BrokenOff):  # the next start tests
                self._test()
        self.rank.any(False)  # nobody leaves before the last checkpoint is on disk

    def _start(self) -> None:
        """Cleans up after an earlier start and tells what is about to run; rank 0 does."""
        self.store.clear_incomplete()
        self.tracking.resume(self.state.unsent)
        for line in self.setup.lines(self.job, self.rank):
            logger.info(line)

    def _is_due(self, done: int) -> bool:
        return done % self.settings.log_every_steps == 0 or done == self.total_steps

    def _ends_epoch(self, done: int) -> bool:
        return done % self.plan.steps == 0 or done == self.total_steps
