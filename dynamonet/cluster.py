"""The one engine: Ray, started on this machine or joined where a cluster runs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Generic, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dynamonet.errors import UserError

T = TypeVar("T")
K = TypeVar("K")
# what a training needs and takes seconds; none of them imports Ray, which would have two threads
# wait for each other
HEAVY = ("dynamonet.model.network", "dynamonet.tracking.runs")
TASKS_PER_CPU = 2  # in flight for each core, so that the next one waits at the worker


@contextmanager
def connected(importing: Sequence[str] = ()) -> Iterator[None]:
    """Joins the cluster that RAY_ADDRESS or `ray start` names, else starts a private Ray here.

    Args:
        importing: Modules that a thread imports while Ray starts; see `HEAVY`.

    Raises:
        UserError: RAY_ADDRESS names a cluster that does not answer.
    """
    if ray.is_initialized():
        yield
        return
    # not the other way round: the system ends Ray with the thread that has started it
    threading.Thread(target=lambda: [*map(import_module, importing)], daemon=True).start()
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


def nodes() -> list[dict[str, float]]:
    """Returns what each living node has in all: CPU, GPU and others."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


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


@dataclass(eq=False)
class TwoSteps(Generic[K]):
    """Work in parts, and then with all that they gave."""

    parts: dict[K, tuple[Any, ...]]  # arguments of each part
    whole: tuple[Any, ...]  # arguments of the second step, less what the parts gave
    given: dict[K, list[ray.ObjectRef]] = field(default_factory=dict)


def in_two_steps(
    first: Callable[..., Iterator[Any]],
    second: Callable[..., Any],
    work: Iterable[TwoSteps[K]],
) -> Iterator[tuple[TwoSteps[K], K | None, Any]]:
    """Runs the parts of all work as one-core tasks, and each second step once its parts are done.

    `second(*whole, given)` gets an iterator over what `first(*part)` yielded, for each part. Parts
    of several pieces of work run side by side, so that all cores are busy to the end; what they
    give waits in Ray's object store. Else as `in_parallel`, but on an error the tasks still running
    end by themselves: Ray 2.60 aborts the driver now and then when it cancels such parts.

    Yields:
        Work and key of each part as it ends, with None; work, None and the result of each second
        step.
    """
    make_part = ray.remote(num_cpus=1, num_returns="streaming")(first)
    make_whole = ray.remote(num_cpus=1)(_second_step).options(name=second.__name__)
    limit = TASKS_PER_CPU * num_cpus()
    running: dict[Any, tuple[TwoSteps[K], K | None]] = {}
    left: dict[TwoSteps[K], int] = {}  # parts that have not ended

    def start_whole(item: TwoSteps[K]) -> None:
        del left[item]
        running[make_whole.remote(second, item.whole, item.given)] = item, None

    def starts() -> Iterator[bool]:
        for item in work:
            item.given = {key: [] for key in item.parts}
            left[item] = len(item.parts)
            for key, words in item.parts.items():
                running[make_part.remote(*words)] = item, key
                yield True
            if not item.parts:
                start_whole(item)
                yield True

    waiting = starts()
    while True:
        while len(running) < limit and next(waiting, False):
            pass
        if not running:
            return
        handles: list[Any] = [*running]
        done: list[Any] = ray.wait(handles, fetch_local=False)[0]
        (ready,) = done
        item, key = running[ready]
        result = None
        if key is None:
            result = ray.get(ready)
            item.given.clear()  # so that Ray forgets what the parts gave
        else:
            try:
                item.given[key].append(next(ready))
                continue
            except StopIteration:
                left[item] -= 1
        del running[ready]
        yield item, key, result
        if key is not None and not left[item]:
            start_whole(item)


def _second_step(
    function: Callable[..., T], words: tuple[Any, ...], given: dict[Any, list[ray.ObjectRef]]
) -> T:
    return function(*words, {key: map(ray.get, parts) for key, parts in given.items()})
