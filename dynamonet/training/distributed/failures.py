"""What an error of a worker means: something to mend, or a loss after which to start again.

    user's mistake, damaged data     a UserError of its own     the run ends with its words
    out of memory                    PyTorch's, Python's        it ends, and names the setting
    compile error                    of Dynamo, Inductor        it ends, and names the setting
    shared memory full               of a loader process        it ends, and says what to enlarge
    lost worker, device or process   of the group, of CUDA      Ray starts the workers again
    group taken away by Ray          any, once it is gone       Ray starts the workers again
    store that does not answer       StoreError                 Ray starts the workers again
    anything else                    a fault of the program     it ends with the traceback

A worker that is killed says nothing; `oom_kills` tells whether it was for lack of memory.
"""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
import torch.distributed as dist

from dynamonet.errors import UserError, reason
from dynamonet.storage import StoreError

# of PyTorch's RuntimeErrors without a class of their own
_LOST = ("gloo", "NCCL", "ProcessGroup", "CUDA error", "DataLoader worker")
_NO_MEMORY = ("can't allocate memory", "out of memory")
_NO_SHARED_MEMORY = ("Bus error", "shared memory (shm)")
_COMPILER = "TorchDynamoException"  # by name: importing it takes a second
_COUNTERS = (  # of this container in both versions of cgroups, else of the machine
    Path("/sys/fs/cgroup/memory.events"),
    Path("/sys/fs/cgroup/memory/memory.oom_control"),
    Path("/proc/vmstat"),
)


def final_error(
    error: Exception, where: str, micro_batch: int, workers: int = 1
) -> Exception | None:
    """Returns what the driver raises for a worker's error; None = start the workers again.

    Args:
        where: Rank and step, to be named.
        micro_batch: Clips that went through the model at once; 0 = not known.
        workers: With more than one, Ray takes their process group away in the midst of a step
            when it is about to end them: to change their number, or for another's failure.
    """
    text = str(error)
    if isinstance(error, StoreError):
        return None
    if isinstance(error, UserError):
        return error
    if ran_out_of_memory(error):
        half = f"a micro_batch below {micro_batch}, " if micro_batch > 1 else ""
        return UserError(
            f"out of memory, {where}: {reason(error)}",
            "Set activation_checkpointing, with which the same run goes on after its last "
            f"checkpoint; or, in a new run, {half}precision: bf16 or a smaller model.",
        )
    if any(base.__name__ == _COMPILER for base in type(error).__mro__):
        return UserError(
            f"the trunk cannot be compiled, {where}: {reason(error)}", "Set compile: off."
        )
    if any(words in text for words in _NO_SHARED_MEMORY):
        return UserError(
            f"a loader process ran out of shared memory, {where}: {reason(error)}",
            "Enlarge /dev/shm (in a container --shm-size, or an emptyDir of medium Memory), or "
            "lower loader.prefetch_batches or loader.processes.",
        )
    lost = isinstance(error, RuntimeError) and any(word in text for word in _LOST)
    taken_away = workers > 1 and not dist.is_initialized()
    if lost or taken_away or isinstance(error, dist.DistError):
        return None
    # as one that can always be pickled
    return RuntimeError("".join(traceback.format_exception(error)))


def ran_out_of_memory(error: BaseException) -> bool:
    """Tells whether it was the device's memory or the machine's."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _NO_MEMORY)


def oom_kills() -> int:
    """Returns how many processes the system has ended for lack of memory so far."""
    for file in _COUNTERS:
        try:
            lines = [line.split() for line in file.read_text().splitlines()]
        except OSError:
            continue
        found = [int(words[1]) for words in lines if words[0] == "oom_kill"]
        if found:
            return found[0]
    return 0
