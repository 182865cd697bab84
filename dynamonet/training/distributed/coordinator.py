"""What driver and workers tell each other: to stop, where each rank is, what cannot be recovered.

The coordinator is an actor on the driver's node. Each rank reports its step about twice a second
and is told whether to stop; so a rank that is lost or stuck can be named by those who wait for it.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import ray

from dynamonet import cluster

BEAT_SECONDS = 0.5
ANSWER_SECONDS = 300  # a new actor took over 30 on a machine with far more to do than cores
QUIET_SECONDS = 10  # a rank that is silent for this long counts as gone


@dataclass
class CoordinatorState:
    """What the actor holds."""

    stop_requested: bool = False
    steps: dict[int, tuple[int, str, float]] = field(default_factory=dict)  # step, host, heard at
    failure: Exception | None = None
    oom_kills: dict[str, int] = field(default_factory=dict)  # by host, when the run began there

    def beat(self, rank: int, step: int, host: str) -> bool:
        """Records where a rank is and tells it whether to stop."""
        self.steps[rank] = (step, host, time.monotonic())
        return self.stop_requested

    def request_stop(self) -> None:
        self.stop_requested = True

    def record_failure(self, error: Exception) -> None:
        """Records an error that restarting the workers would not fix; the first one stays."""
        self.failure = self.failure or error

    def get_failure(self) -> Exception | None:
        return self.failure

    def new_oom_kills(self, host: str, count: int) -> int:
        """Returns by how much a host's count has grown since it was told first."""
        return count - self.oom_kills.setdefault(host, count)

    def describe_lagging(self) -> str:
        """Names the ranks that are behind the others, or have been silent lately."""
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
class Coordinator:
    """A picklable handle on the actor; each method waits for its answer."""

    actor: Any  # a CoordinatorState; Ray's types do not know its remote methods

    @classmethod
    def start(cls) -> Coordinator:
        """Starts the actor on this node."""
        options = {"num_cpus": 0, "scheduling_strategy": cluster.on_this_node()}
        return cls(ray.remote(CoordinatorState).options(**options).remote())

    def beat(self, rank: int, step: int, host: str) -> bool:
        """Reports where a rank is; returns whether to stop."""
        return ray.get(self.actor.beat.remote(rank, step, host), timeout=ANSWER_SECONDS)

    def request_stop(self) -> None:
        """Asks all ranks to stop after the step at hand."""
        ray.get(self.actor.request_stop.remote(), timeout=ANSWER_SECONDS)

    def record_failure(self, error: Exception) -> None:
        """Records an error that restarting the workers would not fix."""
        ray.get(self.actor.record_failure.remote(error), timeout=ANSWER_SECONDS)

    def failure(self) -> Exception | None:
        """Returns the recorded error, if any."""
        return ray.get(self.actor.get_failure.remote(), timeout=ANSWER_SECONDS)

    def new_oom_kills(self, host: str, count: int) -> int:
        """Returns how many processes the system has ended on a host since the run began there."""
        return ray.get(self.actor.new_oom_kills.remote(host, count), timeout=ANSWER_SECONDS)

    def describe_lagging(self) -> str:
        """Names the ranks that are behind the others, or have been silent lately."""
        return ray.get(self.actor.describe_lagging.remote(), timeout=ANSWER_SECONDS)


class Heartbeat:
    """A worker's end: a thread that reports where its rank is and learns of a stop."""

    def __init__(self, coordinator: Coordinator | None, rank: int) -> None:
        self.coordinator, self.rank = coordinator, rank
        self.step, self.stop = 0, False
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def __enter__(self) -> Heartbeat:
        if self.coordinator is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _run(self) -> None:
        host = socket.gethostname()
        while not self._over.wait(BEAT_SECONDS):
            assert self.coordinator is not None
            with contextlib.suppress(Exception):  # a coordinator that is gone stops no training
                self.stop = self.coordinator.beat(self.rank, self.step, host) or self.stop
