"""From rank 0 to the driver's console: short messages through a Ray queue.

On a terminal the newest step is one line that stays at the bottom and changes in place; elsewhere
each step that is told is a line of its own.
"""

from __future__ import annotations

import logging
import logging.handlers
import time
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from ray.util.queue import Empty, Queue
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.text import Text

from dynamonet import cluster

PACKAGE = logging.getLogger("dynamonet")
# metrics of a step that the line shows, in this order, and how
SHOWN = {
    "train/loss": "loss {:.4g}",
    "train/skill": "skill {:.3f}",
    "train/accuracy": "accuracy {:.1%}",
    "train/clips_per_second": "{:.1f} clips/s",
    "train/data_wait_share": "waiting {:.0%}",
    "train/mfu": "MFU {:.0%}",
}


@contextmanager
def handling_logs(handler: logging.Handler, level: int = logging.INFO) -> Iterator[None]:
    """Gives a handler what this package logs, from a level on, while the block runs."""
    PACKAGE.addHandler(handler)
    PACKAGE.setLevel(level)
    try:
        yield
    finally:
        PACKAGE.removeHandler(handler)


@dataclass(frozen=True)
class Progress:
    """The worker's end of the line; a console that is gone stops no training."""

    queue: Queue

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        self._put(("step", done, total, metrics))

    def note(self, done: int, metrics: dict[str, float]) -> None:
        self._put(("note", done, metrics))

    def receiving_logs(self) -> AbstractContextManager[None]:
        """Sends what this package logs here to the driver while the block runs."""
        return handling_logs(logging.handlers.QueueHandler(self))  # type: ignore[arg-type]

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Takes a record; so it is a queue to logging's own handler."""
        self._put(("log", record))

    def _put(self, message: tuple[Any, ...]) -> None:
        try:
            self.queue.put_nowait(message)
        except Exception:  # the driver may be gone; training is worth more than its console
            return


class ConsoleHandler(logging.Handler):
    """The driver's handler: prints through rich, each record one line however long it is.

    rich's own handler would break lines, and with them the paths and commands in them.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        self.console.print(escape(self.format(record)), soft_wrap=True)


class ConsoleLog:
    """The driver's end: prints what arrives."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.queue = Queue(
            actor_options={"num_cpus": 0, "scheduling_strategy": cluster.on_this_node()}
        )
        self.line, self.handler = StepLine(console), ConsoleHandler(console)

    def follow(self, seconds: float) -> None:
        """Prints what comes within that time, however much it is."""
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and self._print_next(left):
            pass

    def drain(self) -> None:
        """Prints what has come and was not printed yet; nobody may be sending any more."""
        while self._print_next(0.1):
            pass

    def _print_next(self, wait_seconds: float) -> bool:
        try:
            message = self.queue.get(timeout=wait_seconds)
        except Empty:
            return False
        self._show(message)
        return True

    def _show(self, message: tuple[Any, ...]) -> None:
        kind, *words = message
        if kind == "log":
            self.handler.handle(words[0])
        elif kind == "note":
            for line in note_lines(*words):
                self.console.print(escape(line), soft_wrap=True)
        else:
            self.line.show(*words)


class StepLine:
    """The line that tells where the training is."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.began: tuple[float, int] | None = None

    def shown(self) -> AbstractContextManager[object]:
        """Keeps the line at the bottom of a terminal while the block runs."""
        return self.live or nullcontext()

    def show(self, done: int, total: int, metrics: Mapping[str, float]) -> None:
        """Shows a step that is done; of the metrics those that `SHOWN` names."""
        text = step_text(done, total, metrics, self._left(done, total))
        if self.live:
            self.live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)
        else:
            self.console.print(text, soft_wrap=True)

    def _left(self, done: int, total: int) -> float | None:
        now = time.monotonic()
        if self.began is None:
            self.began = now, done
        since, first = self.began
        return (now - since) / (done - first) * (total - done) if done > first else None


def step_text(
    done: int, total: int, metrics: Mapping[str, float], left_seconds: float | None
) -> str:
    """Returns the line of a step.

    Args:
        left_seconds: Until the training ends; None = not known yet.
    """
    parts = [f"step {done:>7,}/{total:,}"]
    parts += [form.format(metrics[name]) for name, form in SHOWN.items() if name in metrics]
    if left_seconds is not None:
        parts.append(f"{duration(left_seconds)} left")
    return "  ".join(parts)


def note_lines(done: int, metrics: Mapping[str, float]) -> list[str]:
    """Returns an evaluation's metrics, a line for each group: what stands before the slash."""
    groups: dict[str, list[str]] = {}
    for name, value in metrics.items():
        group, _, rest = name.rpartition("/")
        groups.setdefault(group, []).append(f"{rest} {value:.4g}")
    return [f"step {done:>7,}  {group:5}  {'  '.join(each)}" for group, each in groups.items()]


def duration(seconds: float) -> str:
    """Returns 75 s as 1 min 15 s, and the two largest units of what is longer."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{rest} s"
    hours, minutes = divmod(minutes, 60)
    if not hours:
        return f"{minutes} min {rest} s"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if days else f"{hours} h {minutes} min"
