"""Preflight: `python -m dynamonet.doctor [--config NAME|FILE] [--key value ...]`

Looks at everything that a pretraining stands on and says, one line a check, whether it will do; for
what will not, what to do about it. It starts no Ray and makes no folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.text import Text

from dynamonet.errors import UserError, run_entry
from dynamonet.preflight import engine, machine, places
from dynamonet.preflight.check import Check, PreflightSettings
from dynamonet.settings import load, names, read_yaml

STAGE = "pretrain"
STYLES = {"pass": "green", "warn": "yellow", "fail": "bold red"}
CHECKS: dict[str, Callable[[PreflightSettings], list[Check]]] = {
    "versions": machine.versions,
    "decoder": machine.decoder,
    "device": machine.device,
    "precision": machine.precision,
    "disk": places.disk,
    "results": places.results,
    "shards": places.shards,
    "tracking": places.tracking_store,
    "ray auth": engine.authentication,
    "ray": engine.engine,
}
EXAMPLES = """examples:
  python -m dynamonet.doctor                                   before python pretrain/run.py
  python -m dynamonet.doctor --config tiny --num_workers 2     before the same words to it
  ray job submit -- python -m dynamonet.doctor                 where the job's driver will run
"""


def examine(settings: PreflightSettings) -> Iterator[Check]:
    """Runs all checks; one that breaks is itself a failure."""
    yield from _known_keys(settings)
    for name, check in CHECKS.items():
        try:
            yield from check(settings)
        except Exception as error:
            words = str(error).strip().splitlines() or [type(error).__name__]
            text = words[0] if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
            remedy = " ".join(words[1:]) or "mend this first, then ask again"
            yield Check("fail", name, " ".join(text.split()), remedy)


def _known_keys(settings: PreflightSettings) -> Iterator[Check]:
    """Compares the keys left to the stage with those of its committed default settings."""
    others = settings.model_extra or {}
    known = read_yaml("default", STAGE) if "default" in names(STAGE) else others
    unknown = sorted(others.keys() - known.keys())
    if unknown:
        text = f"unknown keys: {', '.join(unknown)}"
        yield Check("fail", "settings", text, "python pretrain/run.py --help lists all keys")


def show(check: Check, console: Console) -> None:
    """Prints a check's line, and below it what to do."""
    line = Text(check.state, STYLES[check.state]).append(f"  {check.name:11}", "bold")
    console.print(line.append(check.text, "not bold default"), soft_wrap=True)
    if check.remedy:
        console.print(Text(f"{'':17}do: {check.remedy}"), soft_wrap=True)


def main(argv: list[str]) -> list[Check]:
    """Runs the preflight of a pretraining with these settings.

    Raises:
        UserError: something fails.
    """
    settings = load(
        PreflightSettings,
        argv,
        stage=STAGE,
        prog="python -m dynamonet.doctor",
        description="Checks what a pretraining stands on, before it starts.",
        examples=EXAMPLES,
    )
    console, found = Console(highlight=False), []
    for check in examine(settings):
        show(check, console)
        found.append(check)
    counts = Counter(check.state for check in found)
    console.print(", ".join(f"{counts[state]} {state}" for state in STYLES))
    if counts["fail"]:
        failed = dict.fromkeys(check.name for check in found if check.state == "fail")
        raise UserError(f"not ready: {', '.join(failed)}")
    return found


if __name__ == "__main__":
    run_entry(main)
