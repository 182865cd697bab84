"""The check that a user with a GPU runs, at tiny size and wherever the tests run."""

from __future__ import annotations

import pytest

from benchmarks import gpu_check
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_line_of_the_check_passes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("SIZE", "tiny")
    figures = {figure.name: figure for figure in gpu_check.main()}
    assert [*figures] == [
        *("precision", "compile", "memory_trial", "resume", "throughput", "mfu", "wait_share")
    ]
    timed = ("throughput", "mfu", "wait_share")  # which depend on what else the machine does
    assert all(figure.passes for name, figure in figures.items() if name not in timed)
    assert "GPU check on" in capsys.readouterr().out
