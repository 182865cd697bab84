"""What each worker of a training reserves on the cluster."""

from __future__ import annotations

from collections.abc import Mapping

import ray.train

from dynamonet.errors import UserError
from dynamonet.training.settings import TrainSettings


def worker_resources(
    settings: TrainSettings, have: Mapping[str, float]
) -> tuple[ray.train.ScalingConfig, int]:
    """Returns what each worker reserves and its number of cores.

    Args:
        have: What the cluster has in all, as `ray.cluster_resources` names it.

    Raises:
        UserError: the cluster does not have what is needed.
    """
    least = settings.min_workers or settings.num_workers
    cpus, gpus = int(have.get("CPU", 0)), int(have.get("GPU", 0))
    use_gpu = gpus > 0 if settings.device == "auto" else settings.device == "gpu"
    share = max(1, cpus // settings.num_workers)
    each = settings.cpus_per_worker or (share if not use_gpu else max(1, cpus // max(gpus, 1)))
    wanted = {"CPU": each * least, "GPU": least if use_gpu else 0}
    short = [
        f"{count} {kind} wanted, {int(have.get(kind, 0))} there"
        for kind, count in wanted.items()
        if count > have.get(kind, 0)
    ]
    if short:
        raise UserError(
            f"num_workers = {settings.num_workers} does not fit this cluster: {'; '.join(short)}",
            "Lower num_workers or cpus_per_worker, or set device to cpu.",
        )
    for count in range(least, settings.num_workers + 1):
        if settings.loader.batch_size % count:
            key = "num_workers" if least == settings.num_workers else "a number of workers"
            raise UserError(
                f"loader.batch_size = {settings.loader.batch_size} does not divide by "
                f"{key} = {count}",
                "Change one of the two settings.",
            )
    elastic = least < settings.num_workers
    scaling = ray.train.ScalingConfig(
        num_workers=(least, settings.num_workers) if elastic else settings.num_workers,
        use_gpu=use_gpu,
        resources_per_worker={"CPU": each},
    )
    return scaling, each
