"""What must never happen with data or settings from outside; docs/reliability.md has the table."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

CODE = [
    path
    for folder in ("dynamonet", "data_prep", "pretrain", "finetune", "demo", "benchmarks")
    for path in sorted((ROOT / folder).rglob("*.py"))
]


def calls(path: Path) -> list[tuple[str, ast.Call]]:
    """Returns every call in a file with the dotted name of what is called."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [(ast.unparse(node.func), node) for node in nodes if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), "")


def test_nothing_is_unpickled_but_jobs_of_our_own_processes() -> None:
    own = (
        "training/worker.py",
        "child_process.py",
    )  # a job, made by this run's driver or by the caller
    allowed = {ROOT / "dynamonet" / name for name in own}
    for path in CODE:
        for name, call in calls(path):
            if re.search(r"pickle\.loads?$|Unpickler$|marshal\.loads?$|joblib\.load$", name):
                assert path in allowed, f"{path}:{call.lineno}: {name}"
            if name.endswith("torch.load"):
                assert keyword(call, "weights_only") == "True", f"{path}:{call.lineno}"
            if name in ("np.load", "numpy.load"):
                assert keyword(call, "allow_pickle") in ("", "False"), f"{path}:{call.lineno}"
            if name.startswith("yaml.") and "load" in name:
                assert name == "yaml.safe_load", f"{path}:{call.lineno}: {name}"
            assert name not in ("eval", "exec"), f"{path}:{call.lineno}: {name}"


def test_programs_are_started_without_a_shell() -> None:
    for path in CODE:
        for name, call in calls(path):
            assert name not in ("os.system", "os.popen", "subprocess.getoutput"), path
            if name.startswith("subprocess."):
                assert keyword(call, "shell") in ("", "False"), f"{path}:{call.lineno}"


def test_members_of_a_tar_never_become_paths() -> None:
    for path in CODE:
        for name, call in calls(path):
            assert not name.endswith((".extractall", ".unpack_archive")), f"{path}:{call.lineno}"
            assert name != "tar.extract", f"{path}:{call.lineno}"


def test_servers_that_are_started_here_listen_on_loopback() -> None:
    for path in CODE:
        text = path.read_text("utf-8")
        assert "0.0.0.0" not in text, path
    ray_starts = [call for path in CODE for name, call in calls(path) if name == "ray.init"]
    assert ray_starts
    for call in ray_starts:  # its default is loopback, and no dashboard is started
        assert keyword(call, "dashboard_host") == ""


def test_a_checkpoints_list_of_files_cannot_lead_elsewhere(tmp_path: Path) -> None:
    from dynamonet.training.checkpoint.store import damage

    folder = tmp_path / "step-00000001"
    folder.mkdir()
    (tmp_path / "secret").write_text("x")
    (folder / "files.json").write_text('{"step": 1, "files": {"../secret": [1, "00"]}}')
    assert damage(folder) == "../secret is missing"


@pytest.mark.parametrize("content", ["[]", "{}", '{"files": []}', "\x00", '{"files": {}}'])
def test_a_damaged_list_of_files_is_damage_and_no_crash(tmp_path: Path, content: str) -> None:
    from dynamonet.training.checkpoint.store import damage

    (tmp_path / "files.json").write_text(content)
    assert damage(tmp_path) == "files.json is damaged"


def test_tokens_are_neither_printed_nor_logged() -> None:
    secret = re.compile(r"(TOKEN|PASSWORD|SECRET)", re.IGNORECASE)
    for path in CODE:
        for name, call in calls(path):
            if name.split(".")[-1] in ("print", "say", "log_text", "log_param", "info", "warning"):
                read = [ast.unparse(a) for a in ast.walk(call) if isinstance(a, ast.Call)]
                leaks = [r for r in read if "environ" in r and secret.search(r)]
                assert not leaks, f"{path}:{call.lineno}"
