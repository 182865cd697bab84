"""Rank 0's way to the tracking store: a store that is away delays metrics and stops no training."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from dynamonet.tracking.runs import TrackedRun

if TYPE_CHECKING:
    from dynamonet.training.logs.metrics import Evaluation

logger = logging.getLogger(__name__)
UNSENT = "unsent-metrics.json"  # in the run's folder
RETRY_SECONDS = 60
_MAX_ARTIFACTS = 32  # held back; metrics are small and all are held back

Rows = dict[int, dict[str, float]]


class BufferedLogger:
    """Logs to a run; what the store does not take is kept, and sent when it is back."""

    def __init__(self, run: TrackedRun, home: Path) -> None:
        self.run, self.home = run, home
        self.logged: dict[str, int] = {}
        self.rows: Rows = {}
        self.artifacts: list[Callable[[], None]] = []
        self.away_since: float | None = None
        # else MLflow tries for minutes, and the training stands still
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")

    def resume(self) -> None:
        """Finds out what an earlier start logged, and takes over what it could not send."""
        try:
            self.logged = self.run.last_steps()
        except Exception as error:  # MLflow's own, SQLAlchemy's, requests' and others
            self._away(error)
        try:
            saved = json.loads((self.home / UNSENT).read_text("utf-8"))
        except (OSError, ValueError):
            return
        for step, values in saved.items():
            self.rows.setdefault(int(step), {}).update(values)
        (self.home / UNSENT).unlink(missing_ok=True)

    def metrics(self, rows: Rows) -> None:
        """Logs metrics of several steps; a step that was logged already is not logged again."""
        for step, values in rows.items():
            self.rows.setdefault(step, {}).update(values)
        self._send()

    def evaluation(self, step: int, result: Evaluation) -> None:
        """Logs an evaluation; its files go to the run's folder too."""
        for name, figure in result.figures.items():
            words = (figure, name.format(step=step))
            self.artifacts.append(lambda words=words: self.run.log_figure(*words))
        for name, content in result.files.items():
            (self.home / name).parent.mkdir(exist_ok=True)
            (self.home / name).write_bytes(content)
            self.artifacts.append(lambda words=(content, name): self.run.log_bytes(*words))
        self.metrics({step: result.metrics})

    def close(self) -> None:
        """Tries once more, and leaves in the run's folder what could not be sent."""
        self._send(force=True)
        if self.rows:
            (self.home / UNSENT).write_text(json.dumps(self.rows), "utf-8")
            logger.warning(
                f"tracking metrics of {len(self.rows):,} steps wait in {self.home / UNSENT}; "
                "the same command sends them"
            )

    def _send(self, *, force: bool = False) -> None:
        now = time.monotonic()
        if self.away_since is not None and not force and now - self.away_since < RETRY_SECONDS:
            return
        try:
            if self.away_since is not None:  # what timed out may have arrived
                self.logged = self.run.last_steps()
            if self.rows:
                self.run.log_metrics(self.rows, after=self.logged)
                self.rows = {}
            while self.artifacts:
                self.artifacts[0]()
                self.artifacts.pop(0)
        except Exception as error:
            self._away(error)
            return
        if self.away_since is not None:
            logger.info("tracking the store is back, nothing is missing")
        self.away_since = None

    def _away(self, error: Exception) -> None:
        if self.away_since is None:
            reason = str(error).strip().splitlines()[0]
            logger.warning(
                f"tracking {self.run.uri} does not answer, metrics are held back: {reason}"
            )
        self.away_since = time.monotonic()
        del self.artifacts[:-_MAX_ARTIFACTS]
