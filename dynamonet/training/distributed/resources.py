"""What each worker of a training reserves, and whether the cluster's nodes have room for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import ray.train

from dynamonet.errors import UserError
from dynamonet.training.settings import TrainSettings


def worker_resources(
    settings: TrainSettings, nodes: Sequence[Mapping[str, float]]
) -> tuple[ray.train.ScalingConfig, int]:
    """Returns what each worker reserves and its number of cores.

    A worker lies on one node, so room is counted node by node. By default a worker takes as many
    cores as it can while all workers find a place; beside GPUs at most a GPU's share of its node.

    Args:
        nodes: What each node has in all, as `ray.nodes` names it under Resources.

    Raises:
        UserError: the nodes do not have room for the workers.
    """
    least, most = settings.min_workers or settings.num_workers, settings.num_workers
    gpus = any(node.get("GPU", 0) >= 1 for node in nodes)
    use_gpu = gpus if settings.device == "auto" else settings.device == "gpu"
    each = settings.cpus_per_worker or _most_cores(nodes, most, use_gpu=use_gpu)
    room = sum(places(node, each, use_gpu=use_gpu) for node in nodes)
    if room < least:
        kind = f"{each} CPU and a GPU" if use_gpu else f"{each} CPU"
        have = "; ".join(f"{n.get('CPU', 0):g} CPU, {n.get('GPU', 0):g} GPU" for n in nodes)
        raise UserError(
            f"num_workers = {settings.num_workers} does not fit this cluster: {least} of "
            f"{kind} wanted, room for {room} on its nodes ({have})",
            "Lower num_workers or cpus_per_worker, or set device to cpu.",
        )
    for count in range(least, most + 1):
        if settings.loader.batch_size % count:
            key = "num_workers" if least == most else "a number of workers"
            raise UserError(
                f"loader.batch_size = {settings.loader.batch_size} does not divide by "
                f"{key} = {count}",
                "Change one of the two settings.",
            )
    scaling = ray.train.ScalingConfig(
        num_workers=(least, most) if least < most else most,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": each},
    )
    return scaling, each


def places(node: Mapping[str, float], cpus: int, *, use_gpu: bool) -> int:
    """Returns how many workers of so many cores a node has room for."""
    room = int(node.get("CPU", 0) // cpus)
    return min(room, int(node.get("GPU", 0))) if use_gpu else room


def _most_cores(nodes: Sequence[Mapping[str, float]], workers: int, *, use_gpu: bool) -> int:
    """Returns the most cores with which so many workers find a place; 1 where none does."""
    shares = [int(node.get("GPU", 0)) if use_gpu else 1 for node in nodes]
    most = [int(n.get("CPU", 0)) // by for n, by in zip(nodes, shares, strict=True) if by]
    for cpus in range(max(most, default=1), 1, -1):
        if sum(places(node, cpus, use_gpu=use_gpu) for node in nodes) >= workers:
            return cpus
    return 1
