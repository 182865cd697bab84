"""Preflight: `python -m dynamonet.doctor [--config NAME|FILE] [--key value ...]`

Looks at everything that a pretraining stands on and says, one line a check, whether it will do; for
what will not, what to do about it. It starts no Ray and makes no folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pkgutil import resolve_name
from typing import cast

from rich.console import Console
from rich.text import Text

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.doctor import machine, places, ray_cluster
from dynamonet.doctor.check import Check, PreflightSettings
from dynamonet.errors import UserError, run_entry

SETTINGS = "pretrain.settings:PretrainSettings"  # by name: the library imports no stage
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
    "ray auth": ray_cluster.authentication,
    "ray": ray_cluster.cluster_checks,
}
EXAMPLES = """examples:
  {doctor}                                   before {pretrain}
  {doctor} --config tiny --num_workers 2     before the same words to it
  ray job submit -- {doctor}                 where the job's driver will run
"""


def examine(settings: PreflightSettings) -> Iterator[Check]:
    """Runs all checks; one that breaks is itself a failure."""
    for name, check in CHECKS.items():
        try:
            yield from check(settings)
        except Exception as error:
            known = isinstance(error, UserError)
            text = error.problem if known else f"{type(error).__name__}: {error}"
            remedy = (known and error.remedy) or "fix this first, then run the doctor again"
            yield Check("fail", name, " ".join(text.split()), remedy)


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
        cast("type[PreflightSettings]", resolve_name(SETTINGS)),
        argv,
        prog=command("doctor"),
        description="Checks what a pretraining depends on, before it starts.",
        examples=EXAMPLES,
    )
    console, checks = Console(highlight=False), []
    for check in examine(settings):
        show(check, console)
        checks.append(check)
    counts = Counter(check.state for check in checks)
    console.print(", ".join(f"{counts[state]} {state}" for state in STYLES))
    if counts["fail"]:
        failed = dict.fromkeys(check.name for check in checks if check.state == "fail")
        raise UserError(f"not ready: {', '.join(failed)}")
    return checks


if __name__ == "__main__":
    run_entry(main)
