"""Rank 0's way to the tracking store: a thread sends, so that no store stops or stalls a training.

What the store does not take is kept and sent when it is back. Checkpoints hold what has not been
sent yet; what is left at the end goes to a file in the run's folder, which the next start sends.
MLflow's own asynchronous logging was not taken: it drops what the store refuses.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynamonet.errors import reason
from dynamonet.tracking.runs import TrackedRun

if TYPE_CHECKING:
    from dynamonet.training.logs.metrics import Evaluation

logger = logging.getLogger(__name__)
UNSENT = "unsent-metrics.json"  # in the run's folder
RETRY_SECONDS = 60
CLOSE_SECONDS = 120  # for what is under way when a training ends; a hung request ends before
_MAX_ARTIFACTS = 32  # held back; metrics are small and all are held back

Rows = dict[int, dict[str, float]]
Saved = dict[str, dict[str, float]]  # the same as JSON has it


class BufferedLogger:
    """Logs to a run from a thread of its own; the training only leaves what is to be sent."""

    def __init__(self, run: TrackedRun, home: Path) -> None:
        self.run, self.home = run, home
        self.logged: dict[str, int] | None = None  # last steps in the store; None = to be asked for
        self.rows: Rows = {}
        self.sending: Rows = {}  # under way
        self.artifacts: list[Callable[[], None]] = []
        self.away_since: float | None = None
        self._changed = threading.Condition()
        self._closing = False
        self._thread: threading.Thread | None = None
        # else MLflow tries for minutes, and all else waits
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")

    def __enter__(self) -> BufferedLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def resume(self, unsent: Saved) -> None:
        """Takes over what an earlier start had not sent.

        Args:
            unsent: As the checkpoint has it.
        """
        try:
            left: Saved = json.loads((self.home / UNSENT).read_text("utf-8"))
        except (OSError, ValueError):
            left = {}
        first, last = ({int(step): v for step, v in saved.items()} for saved in (unsent, left))
        self.metrics(_merged(first, last))  # at once: both may have the same steps
        (self.home / UNSENT).unlink(missing_ok=True)

    def unsent(self) -> Saved:
        """Returns the metrics of each step that the store may not have yet."""
        with self._changed:
            return {str(step): dict(v) for step, v in _merged(self.sending, self.rows).items()}

    def metrics(self, rows: Rows) -> None:
        """Logs metrics of several steps; a step that was logged already is not logged again."""
        with self._changed:
            self.rows = _merged(self.rows, rows)
            self._wake()

    def artifact(self, send: Callable[[], None]) -> None:
        """Logs what `send` sends; it is called again until it raises nothing."""
        with self._changed:
            self.artifacts.append(send)
            self._wake()

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Logs an evaluation; its files go to the run's folder too."""
        for name, figure in result.figures.items():
            words = (figure, name.format(step=step))
            self.artifact(lambda words=words: self.run.log_figure(*words))
        for name, content in result.files.items():
            (self.home / name).parent.mkdir(exist_ok=True)
            (self.home / name).write_bytes(content)
            self.artifact(lambda words=(content, name): self.run.log_bytes(*words))
        self.metrics({step: result.metrics})

    def close(self) -> None:
        """Tries once more, and leaves in the run's folder what could not be sent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread is not None:
            self._thread.join(CLOSE_SECONDS)
        if left := self.unsent():
            (self.home / UNSENT).write_text(json.dumps(left), "utf-8")
            logger.warning(
                f"tracking metrics of {len(left):,} steps wait in {self.home / UNSENT}; "
                "the same command sends them"
            )

    def _wake(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, daemon=True, name="tracking")
            self._thread.start()
        self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._closing or self._is_due()):
                    away = self.away_since is not None
                    self._changed.wait(RETRY_SECONDS / 4 if away else None)
                closing = self._closing
            self._send()
            if closing:
                return

    def _is_due(self) -> bool:
        held_back = self.away_since
        if held_back is not None and time.monotonic() - held_back < RETRY_SECONDS:
            return False
        return bool(self.rows or self.artifacts)

    def _send(self) -> None:
        with self._changed:
            self.sending, self.rows = self.rows, {}
            artifacts, self.artifacts = self.artifacts, []
        try:
            if self.logged is None:  # an earlier start's, or what timed out and may have arrived
                self.logged = self.run.last_steps()
            if self.sending:
                self.run.log_metrics(self.sending, after=self.logged)
                self.sending = {}
            while artifacts:
                artifacts[0]()
                artifacts.pop(0)
        except Exception as error:  # MLflow's own, SQLAlchemy's, requests' and others
            self._away(error, artifacts)
            return
        if self.away_since is not None:
            logger.info("tracking the store is back, nothing is missing")
        self.away_since = None

    def _away(self, error: Exception, artifacts: list[Callable[[], None]]) -> None:
        """Puts back what was not sent."""
        if self.away_since is None:
            logger.warning(
                f"tracking {self.run.uri} does not answer, metrics are held back: {reason(error)}"
            )
        self.away_since, self.logged = time.monotonic(), None
        with self._changed:
            self.rows, self.sending = _merged(self.sending, self.rows), {}
            self.artifacts = [*artifacts, *self.artifacts][-_MAX_ARTIFACTS:]


def _merged(earlier: Rows, later: Rows) -> Rows:
    return {step: earlier.get(step, {}) | later.get(step, {}) for step in earlier | later}
