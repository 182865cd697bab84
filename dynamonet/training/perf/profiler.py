"""A trace of a few steps by torch's profiler, for https://ui.perfetto.dev or chrome://tracing."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dynamonet.training.logs.buffered import BufferedLogger

WARM_UP, STEPS = 2, 3  # steps before the trace, and in it
ARTIFACT = "profile/trace.json.gz"


@contextmanager
def traced(
    tracking: BufferedLogger, device: torch.device, wanted: bool
) -> Iterator[Callable[[], None]]:
    """Yields what is to be called after every step; the trace becomes an artifact of the run.

    A training of fewer steps is traced as far as it goes.

    Args:
        wanted: False yields a function that does nothing.
    """
    if not wanted:
        yield lambda: None
        return

    def keep(trace: profile) -> None:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / Path(ARTIFACT).name
            trace.export_chrome_trace(str(file))
            content = file.read_bytes()
        tracking.artifact(lambda: tracking.run.log_bytes(content, ARTIFACT))

    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    steps = schedule(wait=0, warmup=WARM_UP, active=STEPS, repeat=1)
    with profile(activities=activities, schedule=steps, on_trace_ready=keep) as profiler:
        yield profiler.step
