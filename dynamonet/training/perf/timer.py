"""Where the time of a training goes: what lies between two laps belongs to a part of the loop.

    wait        for the next batch of the loader
    copy        to the device, and cropped, converted to RGB and normalised there
    forward     the network, the prediction and the loss
    backward    gradients, summed over the workers
    optimiser   clipping and the update
    logging     metrics to the tracking store
    evaluation, checkpoint     whatever they take; they do not count among the time of the steps

On CUDA a lap is an event in the device's own stream, so the parts say what the device did or waited
for, and nothing waits for the device before the times are read.
"""

from __future__ import annotations

import time

import torch

STEP_PARTS: tuple[str, ...] = ("wait", "copy", "forward", "backward", "optimiser", "logging")
OTHER_PARTS: tuple[str, ...] = ("evaluation", "checkpoint")


class Stopwatch:
    """Adds up the seconds of each part until they are read."""

    def __init__(self, device: torch.device) -> None:
        self.on_cuda = device.type == "cuda"
        self.laps: list[tuple[str, float | torch.cuda.Event]] = [("", self._now())]

    def lap(self, part: str) -> None:
        """Ends a part, which began when the one before it ended."""
        self.laps.append((part, self._now()))

    def read(self) -> dict[str, float]:
        """Returns the seconds of each part since the last reading, those that took none included.

        On CUDA it waits for the device to come to the last lap.
        """
        seconds = dict.fromkeys(STEP_PARTS + OTHER_PARTS, 0.0)
        _, before = self.laps[0]
        _, last = self.laps[-1]
        if isinstance(last, torch.cuda.Event):
            last.synchronize()
        for part, now in self.laps[1:]:
            seconds[part] += _between(before, now)
            before = now
        self.laps = [("", before)]
        return seconds

    def _now(self) -> float | torch.cuda.Event:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def _between(before: float | torch.cuda.Event, now: float | torch.cuda.Event) -> float:
    if isinstance(before, torch.cuda.Event) and isinstance(now, torch.cuda.Event):
        return before.elapsed_time(now) / 1000
    assert isinstance(before, float) and isinstance(now, float)
    return now - before
