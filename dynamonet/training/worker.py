"""What Ray Train runs on every worker: the training, and what becomes of its errors."""

from __future__ import annotations

import logging
import pickle
import socket
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device

from dynamonet.errors import reason
from dynamonet.training.distributed.failures import final_error, oom_kills
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.task import Job
from dynamonet.training.trainer import Trainer

logger = logging.getLogger(__name__)
MEMORY = (
    "the system ended {ended} processes on {host} for lack of memory since this run began there. "
    "Lower loader.processes, loader.prefetch_batches or loader.decoded_gb"
)


def train_worker(config: dict[str, Any]) -> None:
    """Runs on every Ray Train worker."""
    job: Job = pickle.loads(config["job"])  # made by the driver, brought by Ray
    coordinator, context = job.coordinator, ray.train.get_context()
    assert coordinator is not None
    if coordinator.failure() is not None:
        return  # restarting would not help; the driver raises it
    device = get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rank = Rank(context.get_world_rank(), context.get_world_size(), device)
    torch.set_num_threads(job.threads)
    with job.progress.receiving_logs():
        host = socket.gethostname()
        if ended := coordinator.new_oom_kills(host, oom_kills()):
            logger.warning(f"memory   {MEMORY.format(host=host, ended=ended)}")
        trainer = None
        try:
            trainer = Trainer(job, rank, draining=is_draining)
            trainer.run()
        except Exception as error:
            where = f"rank {rank.index} on {host}"
            if trainer is not None:
                where += f" after step {trainer.heartbeat.step:,}"
            micro_batch = trainer.train_step.micro_batch if trainer is not None else 0
            failure = final_error(error, where, micro_batch, rank.count)
            if failure is None:
                lagging = coordinator.describe_lagging()
                logger.error(f"failed   {where}: {reason(error)}. Workers: {lagging}")
                raise  # for Ray to start the workers again
            coordinator.record_failure(failure)
            if rank.count > 1:  # the other ranks wait for this one: Ray must end them
                raise


def is_draining() -> bool:
    """Tells whether a worker's node is about to go; every rank must call it."""
    return ray.train.get_preemption_info() is not None
