"""The training loop, the same for both stages; a stage brings a `Task`.

Everything random hangs on (seed, step, place in the batch), everything read on (seed, epoch, row):
a run that is killed and resumed takes the same steps as one that was not.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import ray.train
import torch
from ray.train.torch import get_device

from dynamonet.errors import UserError
from dynamonet.model.files import read_weights
from dynamonet.shards.index import repair_command
from dynamonet.shards.reader import TrainingOrder, batches
from dynamonet.training import announce, not_finite
from dynamonet.training.advice import Circumstances
from dynamonet.training.board import Pulse
from dynamonet.training.checkpoint import LoopState, load_checkpoint, snapshot
from dynamonet.training.checkpoint_store import CheckpointStore
from dynamonet.training.ledger import Ledger
from dynamonet.training.meters import Window
from dynamonet.training.ranks import Rank
from dynamonet.training.schedule import rate_factor, set_rate
from dynamonet.training.start import build, find_start
from dynamonet.training.task import Job
from dynamonet.training.trace import traced
from dynamonet.training.update import Gradients
from dynamonet.video.transforms import ClipBatch


class Wish(NamedTuple):
    """What any rank wants done after the step at hand; the same on all ranks."""

    stop: bool
    save: bool


def train_worker(config: dict[str, Any]) -> None:
    """Runs on every Ray Train worker."""
    job: Job = pickle.loads(config["job"])  # made by the driver, brought by Ray
    board, context = job.board, ray.train.get_context()
    assert board is not None
    if board.call("failed") is not None:
        return  # starting again would not mend it; the driver raises it
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank = Rank(context.get_world_rank(), context.get_world_size(), device)
    torch.set_num_threads(job.threads)
    try:
        Training(job, rank, draining=lambda: ray.train.get_preemption_info() is not None).run()
    except RuntimeError as error:  # PyTorch's when another worker is gone: worth another start
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        job.progress.say(f"failed   rank {rank.index}: {text}. Workers: {board.call('behind')}")
        raise
    except Exception as error:
        board.call("fail", error if isinstance(error, UserError) else describe(error))
        if rank.count > 1:  # the other ranks wait for this one: Ray must end them
            raise


class Training:
    """One worker's training: build, restore, then step until done."""

    def __init__(self, job: Job, rank: Rank, draining: Callable[[], bool] = lambda: False) -> None:
        """Args:
        draining: Tells whether a worker's node is about to go; asked on all ranks at once.
        """
        self.job, self.rank, self.task = job, rank, job.task
        self.settings = settings = job.task.settings
        self.draining, self.drained = draining, False
        self.store = CheckpointStore(job.home, settings.keep_checkpoints, self.task.best_by())
        self.ledger = Ledger(job.run, job.home, job.progress.say)
        self.reader = self.task.training_data()
        self.plan = self.reader.plan(settings.loader, rank.count, settings.seed)
        self.total_steps = settings.total_steps(self.plan.steps)
        start = find_start(job.home, rank, job.progress.say)
        made = build(self.task, rank, start, self.plan.batch_size, job.progress.say)
        self.learner, self.precision, self.update = made
        self.state = load_checkpoint(start, self.learner) if start else LoopState()
        self.state.micro_batch = self.update.micro_batch
        self.compiled = settings.compiles(rank.device.type, self.total_steps)
        if self.compiled:
            self.learner.model.trunk.compile()
        self.window, self.pace = Window(rank), self.update.pace
        self.pulse = Pulse(job.board, rank.index)
        self.found: dict[str, float] = {}  # what an evaluation at the present step found
        self.saved_at = time.monotonic()
        self.failed = 0

    def run(self) -> None:
        """The loop itself."""
        self._announce()
        traces = self.settings.profile and self.rank.leads
        tracer = traced(self.job.run, self.rank.device, traces)
        with self.pulse, self.store, tracer as step_traced:
            for step, batch in self._batches():
                wish = self._step(step, batch)
                step_traced()
                done = step + 1
                over = wish.stop or done == self.total_steps
                evaluates = self.task.evaluates_after(done, self.total_steps)
                saves = over or wish.save or done % self.settings.checkpoint_every_steps == 0
                saves = saves or (evaluates and self.task.best_by() is not None)
                if self._is_due(done) or self._ends_epoch(done) or saves:
                    self._log(done)
                self.pace.lap("logging")
                if evaluates:
                    self._evaluate(done)
                    self.pace.lap("evaluation")
                if saves:
                    self._save(done)
                    self.pace.lap("checkpoint")
                if over:
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
        for step in range(first, last):
            batch = next(source)
            self.pace.lap("wait")
            yield step, batch

    def _step(self, step: int, batch: ClipBatch) -> Wish:
        self._count_failures(batch)
        rate = rate_factor(step, self.total_steps, self.settings.optimizer.warmup_share)
        set_rate(self.learner.optimizer, rate)
        found = self.update.gradients(step, batch, ceiling=self._is_due(step + 1))
        refused, *wishes = self.rank.any(not found.finite, self.pulse.stop, self._save_is_due(step))
        if refused:
            self._refuse(step, batch, found)
        else:
            self.update.apply()
            lr = self.settings.optimizer.lr * rate
            self.window.add(step + 1, lr, len(batch), found.sums)
        self.pulse.step = step + 1
        self.store.check()
        return Wish(*wishes)

    def _save_is_due(self, step: int) -> bool:
        """Tells whether a checkpoint is due by the clock, or because a node is about to go."""
        if self._is_due(step + 1) and not self.drained and self.draining():
            self.drained = True
            return True
        minutes = self.settings.checkpoint_every_minutes
        spent = time.monotonic() - self.saved_at
        return self.rank.leads and minutes is not None and spent >= 60 * minutes

    def _refuse(self, step: int, batch: ClipBatch, found: Gradients) -> None:
        """Leaves the weights as they are, and stops the run unless such steps are skipped."""
        self.state.skipped += 1
        skips, most = self.settings.not_finite == "skip", self.settings.max_skipped_share
        stops = not skips or self.state.skipped > max(1, most * self.total_steps)
        text = ""
        if stops or self.state.skipped <= not_finite.MOST_KEPT:
            text = self._replay(step, batch, found)
        self.update.forget()
        if stops:
            how = f"{self.state.skipped} such steps, more than max_skipped_share = {most:g}. "
            raise UserError(text + (how if skips else "") + not_finite.REMEDY)
        self.job.progress.say(text or f"step {step + 1}: not finite, skipped")

    def _replay(self, step: int, batch: ClipBatch, found: Gradients) -> str:
        """Writes the step to the run's folder and returns what is wrong with it."""
        rows = batch.row.tolist()
        samples = [(self.reader.shard[row].as_py(), self.reader.keys[row].as_py()) for row in rows]
        facts = {"step": step + 1, "seed": self.settings.seed, "samples": samples}
        facts |= {"loss": repr(found.loss), "gradient_norm": repr(found.norm)}
        return not_finite.report(self.job.home, self.rank, self.update, batch, facts)

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
        row |= self.pace.close(len(steps), clips)
        if self.state.skipped:
            row |= {"train/skipped_steps": float(self.state.skipped)}
        if self._ends_epoch(done) and self.state.epoch_sums:
            epoch = self.task.summarise(self.state.epoch_sums)
            row |= {f"epoch/{name}": value for name, value in epoch.items()}
            row |= {"epoch/number": done / self.plan.steps}
            self.state.epoch_sums = {}
        if self.rank.leads:
            self.ledger.metrics(rows)
            if self._is_due(done):
                self.job.progress.step(done, self.total_steps, row)
            self._advise(last=done == self.total_steps)

    def _evaluate(self, done: int) -> None:
        model = self.learner.result.eval()
        self.rank.share_buffers(model)  # each rank has statistics of its own batches
        with torch.compiler.set_stance("force_eager"):  # few batches, of other sizes
            found = self.task.evaluate(model, self.rank, self.precision)
        self.found = found.metrics
        if self.rank.leads:
            self.ledger.evaluation(done, found)
            self.job.progress.note(done, found.metrics)

    def _test(self) -> None:
        """Measures what the run keeps: its last weights, or those of its best checkpoint."""
        model = self.learner.result.eval()
        if self.task.keeps_best():
            best = self.rank.agree(self.store.best() if self.rank.leads else self.job.home)
            model.load_state_dict(read_weights(best))
        else:
            self.rank.share_buffers(model)
        found = self.task.test(model, self.rank, self.precision)
        if found is not None and self.rank.leads:
            self.ledger.evaluation(self.total_steps, found)
            self.job.progress.note(self.total_steps, found.metrics)

    def _save(self, done: int) -> None:
        """Copies the state and lets a thread write it; only rank 0 does."""
        state, batch = self.state, self.plan.global_batch
        state.step, state.total_steps = done, self.total_steps
        state.samples, state.global_batch = done * batch, batch
        if self.rank.leads:
            extra = {**self.task.describe(), "run": self.job.origin}
            self.store.begin(done, snapshot(self.learner, state, extra), self.found)
        self.found, self.saved_at = {}, time.monotonic()

    def _close(self) -> None:
        if not self.total_steps:
            self._save(0)  # a model that nothing is taught is a result too
        if self.rank.leads:
            self.store.wait()
        if self.state.step == self.total_steps:
            self._test()
        if self.rank.leads:
            self.ledger.close()
        self.rank.any(False)  # nobody leaves before the last checkpoint is on disk

    def _announce(self) -> None:
        """Says on rank 0 what is about to run."""
        if not self.rank.leads:
            return
        self.store.clear_incomplete()
        self.ledger.resume()  # one that was killed may have logged more than its checkpoint holds
        settings, plan = self.settings, self.plan
        lines = [
            announce.clips_line(plan, self.reader),
            announce.batch_line(
                plan, self.update.micro_batch, self.job.processes, self.job.threads
            ),
            announce.order_line(plan, self.reader, settings.loader),
            announce.device_line(settings, self.rank, self.precision, compiled=self.compiled),
            f"work     {self.pace.capacity}",
        ]
        if self.state.step:
            lines.append(f"resumed  after step {self.state.step:,} of {self.total_steps:,}")
        for line in lines:
            self.job.progress.say(line)

    def _advise(self, *, last: bool) -> None:
        """Says once what holds the training up."""
        about = Circumstances.of(
            self.settings,
            self.precision,
            compiled=self.compiled,
            processes=self.job.processes,
            threads=self.job.threads,
        )
        advice = self.pace.advice(about, last=last)
        if advice:
            self.job.progress.say(f"speed    {advice}")
            self.job.run.tag(advice=advice)

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


def describe(error: Exception) -> Exception:
    """Returns an error of the program as one that can always be sent, with its traceback."""
    import traceback

    return RuntimeError("".join(traceback.format_exception(error)))
