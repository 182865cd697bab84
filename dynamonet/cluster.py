"""The one engine: Ray, started on this machine or joined where a cluster runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dynamonet.errors import UserError

T = TypeVar("T")
TASKS_PER_CPU = 2  # in flight for each core, so that the next one waits at the worker


@contextmanager
def connected() -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or `ray start` names, else starts a private Ray here.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)  # else it tells a private Ray of its tokens
    try:
        ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)
    except (ConnectionError, RuntimeError) as error:
        raise UserError(
            f"Ray cannot be reached: {error}\nCheck RAY_ADDRESS and RAY_AUTH_MODE, or unset "
            "RAY_ADDRESS to work on this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def num_cpus() -> int:
    """Returns the cores of the whole cluster."""
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def on_this_node() -> NodeAffinitySchedulingStrategy:
    """Returns what keeps an actor on the caller's node, so that it is not lost with another."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def in_parallel(function: Callable[..., T], arguments: Iterable[tuple[Any, ...]]) -> Iterator[T]:
    """Runs a function once for each tuple of arguments as one-core tasks; yields as they end.

    Arguments are taken one by one while tasks end, so a million of them need not be in memory. A
    task whose worker dies is tried again by Ray. On any error the tasks still running are
    cancelled.
    """
    task = ray.remote(num_cpus=1)(function)
    limit = TASKS_PER_CPU * num_cpus()
    waiting = iter(arguments)
    running: list[ray.ObjectRef] = []
    try:
        while True:
            for words in waiting:
                running.append(task.remote(*words))
                if len(running) >= limit:
                    break
            if not running:
                return
            done, running = ray.wait(running)
            yield from ray.get(done)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
