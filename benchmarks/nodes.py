"""Clusters of raylets on this machine, and what can happen to a training on them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

LIMIT = 600  # seconds for what is awaited
RAY = str(Path(sys.executable).with_name("ray"))
COMPARED = 20  # steps after a change of workers
NOTICE = 20  # seconds from the news that a node will go until it goes


@dataclass(frozen=True)
class Broken:
    """How a run that was broken ended."""

    status: int
    # last step whose loss can be held against a run's with as many workers as before: sums in
    # another order (1e-7) part by a factor of ten in five steps; None = all can
    comparable: int | None = None


@dataclass
class Nodes:
    """A head without cores, and nodes of one core each."""

    cluster: Cluster
    there: list[Any] = field(default_factory=list)
    status: int = 0  # of the last command

    @classmethod
    @contextmanager
    def started(cls, count: int) -> Iterator[Nodes]:
        folder = Path(sys.executable).parent  # where jobs find their `python`
        os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": 0}
        nodes = cls(Cluster(initialize_head=True, head_node_args=head))
        try:
            for _ in range(count):
                nodes.add()
            yield nodes
        finally:
            nodes.cluster.shutdown()

    def add(self) -> None:
        self.there.append(self.cluster.add_node(num_cpus=1))
        self.cluster.wait_for_nodes()

    def remove(self, node: Any) -> None:
        self.there.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def lines(self, words: list[str]) -> Iterator[str]:
        """Runs a command that joins the cluster; yields what it prints, and keeps its status."""
        environment = {**os.environ, "RAY_ADDRESS": self.cluster.address}
        driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment)
        assert driver.stdout is not None
        for line in driver.stdout:
            print(line, end="", flush=True)
            yield line
        self.status = driver.wait()


def step_of(line: str) -> int:
    """Returns the step that a line of the console tells; 0 = none."""
    told = re.match(r"step +([\d,]+)/", line)
    return int(told[1].replace(",", "")) if told else 0


@dataclass
class Told:
    """What the console has told of a run's starts."""

    workers: list[int] = field(default_factory=list)  # of each start
    resumed: list[int] = field(default_factory=list)  # after which steps

    def read(self, line: str) -> None:
        if found := re.match(r"batch .* x (\d+) workers", line):
            self.workers.append(int(found[1]))
        if found := re.match(r"resumed +after step ([\d,]+)", line):
            self.resumed.append(int(found[1].replace(",", "")))

    def ended(self, status: int, *workers: int) -> Broken:
        """Returns how a run ended that must have gone on with so many workers in turn."""
        if self.workers[: len(workers)] != [*workers]:
            raise RuntimeError(f"it went on with {self.workers} workers, not with {workers}")
        return Broken(status, self.resumed[0] + COMPARED)


def lose_and_gain(nodes: Nodes, step: int, words: list[str]) -> Broken:
    """Kills a node; once the training goes on with the others, brings another one."""
    told = Told()
    for line in nodes.lines(words):
        told.read(line)
        if step_of(line) >= step and len(told.workers) == 1 and len(nodes.there) == 3:
            nodes.remove(nodes.there[-1])
        if step_of(line) and len(told.workers) == 2 and len(nodes.there) == 2:
            nodes.add()
    return told.ended(nodes.status, 3, 2, 3)


def drain(nodes: Nodes, step: int, words: list[str]) -> Broken:
    """Tells that a node will go, as a cloud does of spot machines, and takes it away then."""
    told, since = Told(), None
    for line in nodes.lines(words):
        told.read(line)
        if step_of(line) >= step and since is None:
            since = time.monotonic()
            subprocess.run(
                f"{RAY} drain-node --address {nodes.cluster.address} "
                f"--node-id {nodes.there[-1].node_id} --reason DRAIN_NODE_REASON_PREEMPTION "
                f"--reason-message reclaimed --deadline-remaining-seconds {NOTICE}".split(),
                check=True,
            )
        if since and len(nodes.there) == 3 and time.monotonic() - since > NOTICE:
            nodes.remove(nodes.there[-1])
    return told.ended(nodes.status, 3, 2)


def stop_job(nodes: Nodes, step: int, words: list[str]) -> Broken:
    """Submits a training as a job and stops it by `ray job stop`; 1 = it was stopped."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    head = nodes.cluster.head_node
    assert head is not None
    client = JobSubmissionClient(f"http://{head.webui_url}")
    settings = {"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}
    until = time.monotonic() + LIMIT
    while True:  # a cluster takes jobs a few seconds after it has started
        try:
            job = client.submit_job(entrypoint=" ".join(words), runtime_env=settings)
            break
        except RuntimeError:
            if time.monotonic() > until:
                raise
            time.sleep(1)
    while max(map(step_of, client.get_job_logs(job).splitlines()), default=0) < step:
        if client.get_job_status(job).is_terminal() or time.monotonic() > until:
            raise RuntimeError(client.get_job_logs(job))
        time.sleep(0.2)
    subprocess.run([RAY, "job", "stop", "--address", client.get_address(), job], check=True)
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(0.5)
    print(client.get_job_logs(job))
    return Broken(int(status == JobStatus.STOPPED))
