"""What driver and workers tell each other: to stop, where each rank is, what broke for good.

A board lives on the driver's node. Each rank writes its step on it about twice a second, and reads
whether to stop; so a rank that is lost or stuck can be named by those who wait for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.actor import ActorHandle

from dynamonet import cluster

BEAT_SECONDS = 0.5
ANSWER_SECONDS = 300  # on a machine with far more to do than cores a new actor took over 30
QUIET_SECONDS = 10  # without a word for so long a rank counts as gone


@dataclass
class Notes:
    """What stands on the board."""

    stop: bool = False
    steps: dict[int, tuple[int, str, float]] = field(default_factory=dict)  # step, host, heard at
    failure: Exception | None = None

    def beat(self, rank: int, step: int, host: str) -> bool:
        """Notes where a rank is and tells it whether to stop."""
        self.steps[rank] = (step, host, time.monotonic())
        return self.stop

    def ask_to_stop(self) -> None:
        self.stop = True

    def fail(self, error: Exception) -> None:
        """Notes an error that starting the workers again would not mend; the first one stays."""
        self.failure = self.failure or error

    def failed(self) -> Exception | None:
        return self.failure

    def behind(self) -> str:
        """Names the ranks that are behind the others, or that were not heard of lately."""
        if not self.steps:
            return "no worker has begun"
        now, first = time.monotonic(), max(step for step, _, _ in self.steps.values())
        named = [
            f"rank {rank} on {host} at step {step:,}, heard of {now - at:.0f} s ago"
            for rank, (step, host, at) in sorted(self.steps.items())
            if step < first or now - at > QUIET_SECONDS
        ]
        return "; ".join(named) or f"all {len(self.steps)} workers were at step {first:,}"


@dataclass(frozen=True)
class Board:
    """A handle on the board; picklable."""

    actor: ActorHandle[Notes]

    @classmethod
    def put_up(cls) -> Board:
        here = cluster.on_this_node()
        return cls(ray.remote(num_cpus=0, scheduling_strategy=here)(Notes).remote())  # type: ignore[arg-type]

    def call(self, method: str, *words: Any) -> Any:
        """Calls a method of `Notes` and waits for its answer."""
        return ray.get(getattr(self.actor, method).remote(*words), timeout=ANSWER_SECONDS)


class Pulse:
    """A worker's end: a thread that tells where its rank is and hears of a stop."""

    def __init__(self, board: Board | None, rank: int) -> None:
        self.board, self.rank = board, rank
        self.step, self.stop = 0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="pulse")

    def __enter__(self) -> Pulse:
        if self.board is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        host = socket.gethostname()
        while not self._over.wait(BEAT_SECONDS):
            assert self.board is not None
            with contextlib.suppress(Exception):  # a board that is slow or gone stops no training
                self.stop = self.board.call("beat", self.rank, self.step, host) or self.stop
