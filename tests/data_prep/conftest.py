"""What the tests of stage 1 share."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def one_store(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """All runs go to one tracking store, since making one takes a second."""
    runs: Path = tmp_path_factory.getbasetemp() / "runs"
    monkeypatch.setenv("DYNAMONET_RUNS", str(runs))
