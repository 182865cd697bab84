"""From rank 0 to the driver's console: short messages through a Ray queue."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.markup import escape


@dataclass(frozen=True)
class Progress:
    """The worker's end of the line; a console that is gone stops no training."""

    queue: Queue

    def say(self, text: str) -> None:
        self._put(("say", text))

    def step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        self._put(("step", done, total, metrics))

    def note(self, done: int, metrics: dict[str, float]) -> None:
        self._put(("note", done, metrics))

    def _put(self, message: tuple[Any, ...]) -> None:
        try:
            self.queue.put_nowait(message)
        except Exception:  # the driver may be gone; training is worth more than its console
            return


class ConsoleLog:
    """The driver's end: prints what arrives."""

    def __init__(self, console: Console) -> None:
        self.console = console
        # here, so that it is not lost with another node
        node = ray.get_runtime_context().get_node_id()
        here = NodeAffinitySchedulingStrategy(node, soft=False)
        self.queue = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
        self.began: tuple[float, int] | None = None

    def drain(self, wait_seconds: float) -> None:
        """Prints messages until none has come for `wait_seconds`."""
        while True:
            try:
                message = self.queue.get(timeout=wait_seconds)
            except Empty:
                return
            self._show(message)

    def _show(self, message: tuple[Any, ...]) -> None:
        kind, *words = message
        if kind == "say":
            self.console.print(escape(words[0]), soft_wrap=True)
        elif kind == "note":
            text = "  ".join(f"{name} {value:.4g}" for name, value in words[1].items())
            self.console.print(f"step {words[0]:>7,}  {escape(text)}", soft_wrap=True)
        else:
            self._show_step(*words)

    def _show_step(self, done: int, total: int, metrics: dict[str, float]) -> None:
        now = time.monotonic()
        if self.began is None:
            self.began = now, done
        since, first = self.began
        left = (now - since) / max(1, done - first) * (total - done) if done > first else None
        metrics = {name.removeprefix("train/"): value for name, value in metrics.items()}
        shown = "  ".join(
            f"{name} {value:.4g}"
            for name, value in metrics.items()
            if not name.startswith("epoch/") and name not in ("clips_per_second", "data_wait_share")
        )
        speed = (
            f"{metrics.get('clips_per_second', 0):.1f} clips/s  "
            f"waiting {metrics.get('data_wait_share', 0):.0%}"
        )
        remaining = "" if left is None else f"  {left:,.0f} s left"
        self.console.print(
            f"step {done:>7,}/{total:,}  {escape(shown)}  {speed}{remaining}", soft_wrap=True
        )
