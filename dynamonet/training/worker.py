"""What Ray Train runs on every worker: the training, and what becomes of its errors."""

from __future__ import annotations

import logging
import pickle
import traceback
from typing import Any

import ray.train
import torch
from ray.train.torch import get_device

from dynamonet.errors import UserError
from dynamonet.storage import StoreError
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.task import Job
from dynamonet.training.trainer import Trainer

logger = logging.getLogger(__name__)


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
        try:
            Trainer(job, rank, draining=lambda: ray.train.get_preemption_info() is not None).run()
        except (RuntimeError, StoreError) as error:  # PyTorch's when another worker is gone
            text = (str(error).strip() or type(error).__name__).splitlines()[0]
            lagging = coordinator.describe_lagging()
            logger.error(f"failed   rank {rank.index}: {text}. Workers: {lagging}")
            raise  # for Ray to start the workers again
        except Exception as error:
            known = isinstance(error, UserError)
            coordinator.record_failure(error if known else sendable(error))
            if rank.count > 1:  # the other ranks wait for this one: Ray must end them
                raise


def sendable(error: Exception) -> Exception:
    """Returns an error of the program as one that can always be pickled, with its traceback."""
    return RuntimeError("".join(traceback.format_exception(error)))
