"""The rules of the house: arrows, names, what is committed."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("data_prep", "pretrain", "finetune")
LIBRARY = "dynamonet"
# what dynamonet.model may stand on beside the standard library
MODEL_NEEDS = {"torch", "pytorchvideo", "pydantic", "safetensors", "huggingface_hub"}

BROUGHT = ROOT / "dynamonet/model/motion"


def modules(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    """Yields the dotted names that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def test_arrows_go_from_entry_to_room_to_library() -> None:
    for path in modules(LIBRARY):
        assert not {n.split(".")[0] for n in imports(path)} & {*ROOMS, "demo", "tests"}, path
    for room in ROOMS:
        others = {*ROOMS, "demo", "tests"} - {room}
        for path in modules(room):
            assert not {name.split(".")[0] for name in imports(path)} & others, path


@pytest.mark.parametrize("place", [LIBRARY, *ROOMS, "dynamonet/training"])
def test_arrows_among_files_and_folders_go_one_way(place: str) -> None:
    prefix = place.replace("/", ".") + "."
    arrows: dict[str, set[str]] = {}
    for path in modules(place):
        own = path.relative_to(ROOT / place).parts[0].removesuffix(".py")
        inner = (name.removeprefix(prefix) for name in imports(path) if name.startswith(prefix))
        arrows.setdefault(own, set()).update({name.split(".")[0] for name in inner} - {own})
    TopologicalSorter(arrows).prepare()  # raises CycleError


def test_the_model_imports_neither_files_nor_engines() -> None:
    for path in modules("dynamonet/model"):
        outside = {
            name.split(".")[0]
            for name in imports(path)
            if name.split(".")[0] not in sys.stdlib_module_names
        }
        assert outside <= MODEL_NEEDS | {LIBRARY}, path
        inside = {name for name in imports(path) if name.startswith(LIBRARY + ".")}
        plain = ("errors", "settings", "digest")
        allowed = ("dynamonet.model", *(f"dynamonet.{name}" for name in plain))
        assert all(name.startswith(allowed) for name in inside), path


# top-level names of packages that users of this one are likely to have installed as well
NEIGHBOURS = set(
    "accelerate build data datasets evaluate inference metrics models peft timm utils".split()
)


@pytest.mark.parametrize("room", [*ROOMS, "demo"])
def test_nothing_beside_an_entry_hides_another_module(room: str) -> None:
    # `python room/run.py` puts room/ first on the path: a queue.py there would break Ray
    for path in (ROOT / room).iterdir():
        name = path.stem
        if (path.suffix == ".py" or path.is_dir()) and name[0] != "_":
            assert name not in sys.stdlib_module_names | NEIGHBOURS, path
            assert importlib.util.find_spec(name) is None, f"{path} hides an installed module"


def test_no_folder_is_a_long_flat_list() -> None:
    for package in (LIBRARY, *ROOMS, "demo"):
        for folder in {path.parent for path in modules(package)}:
            files = [path for path in folder.glob("*.py") if path.name[0] != "_"]
            assert len(files) <= 12, f"{folder}: {len(files)} files"


def test_the_tree_in_the_readme_is_the_tree() -> None:
    tree = (ROOT / "README.md").read_text("utf-8").split("## What is where")[1].split("## ")[0]
    for package in (LIBRARY, *ROOMS):
        for folder in {path.parent for path in modules(package)} - {ROOT / package}:
            assert f"{folder.name}/" in tree, f"{folder} is not in README's tree"
    for name in re.findall(r"\b(\w+\.py)\b", tree):
        found = [path for package in (LIBRARY, *ROOMS) for path in modules(package)]
        assert name in {path.name for path in found}, f"README's tree names {name}"


def test_no_file_and_no_function_outgrows_its_room() -> None:
    for folder in (LIBRARY, *ROOMS, "demo"):
        for path in modules(folder):
            text = path.read_text("utf-8")
            assert text.count("\n") <= 360, f"{path}: {text.count(chr(10))} lines"
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef):
                    length = (node.end_lineno or 0) - node.lineno
                    assert length <= 80, f"{path}: {node.name} has {length} lines"


def test_public_things_say_what_they_do() -> None:
    for folder in (LIBRARY, *ROOMS, "demo"):
        for path in modules(folder):
            tree = ast.parse(path.read_text("utf-8"))
            assert ast.get_docstring(tree), f"{path}: no docstring"
            for node in tree.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                    short = (node.end_lineno or 0) - node.lineno < 8
                    assert ast.get_docstring(node) or short, f"{path}: {node.name}"


def tracked() -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [ROOT / line for line in listed.stdout.splitlines() if (ROOT / line).is_file()]


def test_nothing_committed_names_a_machine_or_is_large() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    for path in tracked():
        assert path.stat().st_size < (5_000_000 if BROUGHT in path.parents else 1_000_000), path
        if path.suffix in (".py", ".md", ".yaml", ".toml", "") and path.name != "LICENSE":
            text = path.read_text("utf-8")
            # built from parts, so that this file does not name what it forbids
            for word in ("/" + "work/", "/" + "root/", "/home" + "/"):
                assert word not in text, f"{path}: {word}"


def test_the_readme_names_every_top_level_thing_and_only_real_files() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    tops = {path.relative_to(ROOT).parts[0] for path in tracked()}
    for name in tops - {"LICENSE", "README.md", "pyproject.toml"}:
        assert name in text or name[0] == ".", name
    for link in re.findall(r"\]\(((?!http)[^)#]+)", text):
        assert (ROOT / link).exists(), link
    for script in set(re.findall(r"python ((?:data_prep|pretrain|finetune|demo)/\w+\.py)", text)):
        assert (ROOT / script).is_file(), script
