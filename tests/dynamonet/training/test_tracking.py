"""Metrics on their way to a tracking store that is there, away or slow."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from mlflow import MlflowClient

from dynamonet.errors import UserError
from dynamonet.tracking import runs as tracked_runs
from dynamonet.training.logs import buffered
from tests.conftest import logged
from tests.dynamonet.training.conftest import Bench


def test_steps_logged_before_the_first_checkpoint_are_not_logged_again(
    bench: Callable[..., Bench],
) -> None:
    run = bench()
    with pytest.raises(UserError, match=r"step 5: .*loss nan"):
        run.train(nan_at=(5,))
    assert not list(run.home.glob("step-*"))
    run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]


def test_a_store_that_is_away_delays_metrics_and_stops_nothing(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench()
    log = tracked_runs.TrackedRun.log_metrics

    def away(*_: Any, **__: Any) -> None:
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(tracked_runs.TrackedRun, "log_metrics", away)
    run.train("--max_steps", "4")
    text = "\n".join(run.said)
    assert "does not answer, metrics are held back: nobody answers" in text
    assert set(json.loads((run.home / "unsent-metrics.json").read_text())) == {"1", "2", "3", "4"}
    monkeypatch.setattr(tracked_runs.TrackedRun, "log_metrics", log)
    run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]
    assert not (run.home / "unsent-metrics.json").exists()


def test_a_store_that_hangs_stalls_no_step_and_its_error_needs_no_words(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, over = bench(), threading.Event()

    def hangs(*_: Any, **__: Any) -> None:
        assert over.wait(60)
        raise TimeoutError

    monkeypatch.setattr(tracked_runs.TrackedRun, "log_metrics", hangs)
    monkeypatch.setattr(tracked_runs.TrackedRun, "tag", hangs)
    training = run.training()
    close = training.store.wait

    def at_the_end() -> None:  # all steps are done by then
        assert training.heartbeat.step == 6
        over.set()
        close()

    training.store.wait = at_the_end  # type: ignore[method-assign]
    with logged(run.said):
        training.run()
    assert "metrics are held back: TimeoutError" in "\n".join(run.said)
    monkeypatch.undo()
    run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]


def test_what_had_not_been_sent_at_a_kill_comes_with_the_checkpoint(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench()
    with monkeypatch.context() as patch:
        patch.setattr(buffered.BufferedLogger, "_run", lambda self: None)  # nothing leaves
        patch.setattr(buffered.BufferedLogger, "close", lambda self: None)  # killed
        run.train("--max_steps", "4")
    assert not run.losses() and not (run.home / buffered.UNSENT).exists()
    run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6]


def test_resuming_asks_for_last_steps_and_never_for_histories(
    bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = bench()
    run.train("--max_steps", "4")
    assert run.run.last_steps()["train/loss"] == 4

    def whole(*_: Any) -> None:
        raise AssertionError("a whole history was asked for")

    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_metric_history", whole)
        run.train()
    assert sorted(run.losses()) == [1, 2, 3, 4, 5, 6] and not list(run.home.glob("unsent*"))
