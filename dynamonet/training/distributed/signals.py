"""Stopping on SIGTERM and Ctrl-C: once = at the next step with a checkpoint, twice = at once.

`ray job stop` and schedulers send SIGTERM. The process then ends with status 128 + signal, as
shells and schedulers expect: 143 after SIGTERM, 130 after Ctrl-C.
"""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from dynamonet.errors import Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_SECONDS = 30  # for the step at hand and its checkpoint


class StopSignals:
    """Takes the signals over while it is entered."""

    def __init__(self) -> None:
        self.training = False  # workers are there that can be asked to stop
        self.asked: int | None = None
        self.asked_at = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)

    def install(self) -> None:
        """Sets the handlers, again where a library has set its own since."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in SIGNALS:
            before = signal.signal(number, self._handle)
            self._before.setdefault(number, before)

    def check(self) -> None:
        """Raises Stopped when the workers did not come to an end in time."""
        if self.asked is not None and time.monotonic() - self.asked_at > GRACE_SECONDS:
            raise Stopped(self.asked)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.asked is not None or not self.training:
            raise Stopped(number)
        self.asked, self.asked_at = number, time.monotonic()
