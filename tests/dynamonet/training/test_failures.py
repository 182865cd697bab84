"""Classes of failure: what a worker's error becomes, one test each, and two ranks in trouble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed
from torch.distributed import DistNetworkError

from dynamonet.errors import UserError, reason
from dynamonet.storage import StoreError
from dynamonet.training.distributed import failures
from dynamonet.training.distributed.coordinator import CoordinatorState
from dynamonet.training.distributed.failures import final_error, oom_kills

GLOO = "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer"
BUS = "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError(GLOO),
        DistNetworkError("The client socket has timed out"),
        torch.AcceleratorError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
        StoreError("s3://bucket/set: no answer"),
    ],
)
def test_what_was_lost_is_started_again(error: Exception) -> None:
    assert final_error(error, "rank 0", 8) is None


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "micro_batch below 8"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "activation_checkpointing"),
        (MemoryError(), "out of memory, rank 0: MemoryError"),
        (RuntimeError(BUS), "Enlarge /dev/shm"),
        (UserError("damaged"), "damaged"),
    ],
)
def test_what_a_user_can_mend_ends_the_run_with_what_to_do(error: Exception, words: str) -> None:
    final = final_error(error, "rank 0", 8)
    assert isinstance(final, UserError) and words in str(final)


def test_a_trunk_that_cannot_be_compiled_names_the_setting() -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no compiler")

    with pytest.raises(BackendCompilerFailed) as caught:
        torch.compile(lambda x: x + 1, backend=broken)(torch.ones(1))
    assert "Set compile: off" in str(final_error(caught.value, "rank 0", 8))


def test_a_fault_of_the_program_is_not_tried_again_and_keeps_its_traceback() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.mv(torch.ones(2, 2), torch.ones(3))
    final = final_error(caught.value, "rank 0", 8)
    assert type(final) is RuntimeError and "test_failures.py" in str(final)


def test_workers_whose_group_ray_has_taken_away_are_no_fault_of_the_program() -> None:
    with pytest.raises(ValueError, match="not been initialized") as caught:
        torch.distributed.all_reduce(torch.ones(1))
    assert final_error(caught.value, "rank 0", 8, workers=2) is None
    assert final_error(caught.value, "rank 0", 8, workers=1) is not None


def test_an_error_without_words_has_a_reason() -> None:
    assert reason(TimeoutError()) == "TimeoutError" and reason(OSError("a\nb")) == "a"


def test_processes_that_the_system_ended_for_memory_are_counted_by_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert oom_kills() >= 0
    counter = tmp_path / "memory.events"
    monkeypatch.setattr(failures, "_COUNTERS", (tmp_path / "missing", counter))
    counter.write_text("low 0\noom 3\noom_kill 2\n")
    state = CoordinatorState()
    assert oom_kills() == 2 and state.new_oom_kills("here", 2) == 0
    counter.write_text("low 0\noom 4\noom_kill 3\n")
    assert state.new_oom_kills("here", oom_kills()) == 1 and state.new_oom_kills("there", 9) == 0
