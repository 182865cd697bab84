"""The wheel, in an environment without the project and in a folder without its files."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from dynamonet import __version__
from dynamonet.__main__ import main
from dynamonet.commands import COMMANDS
from tests.conftest import ROOT


def run(*words: str | Path, cwd: Path | None = None) -> str:
    """Runs a program to its end and returns what it printed, errors too."""
    env = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=900, cwd=cwd, env=env, check=False
    )
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the wheel; its libraries are those of this one."""
    home = tmp_path_factory.mktemp("wheel")
    pip = (sys.executable, "-m", "pip", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", home, ROOT)
    (wheel,) = home.glob("dynamonet-*.whl")
    venv.create(home / "env")
    run(*pip, "--python", home / "env", "install", "--no-deps", wheel)
    paths = sysconfig.get_paths(vars={"base": str(home / "env"), "platbase": str(home / "env")})
    # a folder named in a .pth file is searched, but the .pth files in it (the checkout's) are not
    Path(paths["purelib"], "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "env/bin"


@pytest.mark.slow
@pytest.mark.timeout(900)  # three stages, each with a start of its own
def test_the_example_runs_all_stages_on_the_wheel_alone(
    programs: Path, video_folder: Path, tmp_path: Path
) -> None:
    script = ROOT / "examples/three_stages.py"
    told = run(programs / "python", script, video_folder, "4", cwd=tmp_path)
    assert "Traceback" not in told, told
    for text in ("segments of the classes left, right", "skill ", "top-1 ", "Exported(", "%\n"):
        assert text in told, told
    assert (tmp_path / "motion.pt2").is_file() and (tmp_path / "clip.png").is_file()


def test_commands_and_configurations_are_installed_and_nothing_else(
    programs: Path, tmp_path: Path
) -> None:
    assert run(programs / "dynamonet", "--version") == f"dynamonet {__version__}\n"
    told = run(programs / "dynamonet", "pretrain", cwd=tmp_path)
    assert "dynamonet shard --source VIDEOS" in told and "Traceback" not in told
    told = run(programs / "python", "-m", "data_prep.shard", "--config", "tiny", "--print-config")
    assert "short_side_px: 64" in told
    told = run(programs / "python", "-c", "import dynamonet; print(dynamonet.__file__)")
    assert told.startswith(str(programs.parent)), "the checkout is not what is tried here"
    load = "import dynamonet; print(dynamonet.DynamoNet.from_pretrained('motion').facts['stage'])"
    assert run(programs / "python", "-c", load) == "pretrain\n"
    for package in ("demo", "benchmarks", "tests", "configs"):
        assert "ModuleNotFoundError" in run(programs / "python", "-c", f"import {package}")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_reached_by_its_name(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dynamonet", name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert capsys.readouterr().out.startswith("usage: python ")


def test_a_mistyped_command_is_answered_with_the_nearest(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dynamonet", "pretrian"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "did you mean pretrain?" in capsys.readouterr().err
