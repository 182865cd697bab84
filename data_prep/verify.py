"""Checks a set of stage 1, and repairs it. `python data_prep/verify.py SHARDS [--repair]`"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pydantic import Field
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.progress import progress_bars
from dynamonet.command_line import load, positional
from dynamonet.commands import command
from dynamonet.errors import UserError, run_entry
from dynamonet.shards.card import repair_command
from dynamonet.stage import ShardsRoot
from dynamonet.storage import Folder

if TYPE_CHECKING:
    from data_prep.integrity.check_set import CheckResult

EXAMPLES = """examples:
  {verify} unlabelled                   the set in data/shards/unlabelled
  {verify} /data/shards/own --no-decode
  {verify} own --repair                 rebuilds what is damaged from the videos
"""


class VerifySettings(ShardsRoot):
    """Checks a set of stage 1 against its index, byte by byte and frame by frame."""

    shards: str = positional("Set to check: a bare name below shards_root, a path or a URI.")
    decode: bool = Field(default=True, description="Decode every frame, too; slower.")
    repair: bool = Field(default=False, description="Rebuild exactly what is damaged.")
    source: str | None = Field(
        default=None, description="repair: where the videos are now, if they have moved."
    )
    show: int = Field(default=20, ge=0, description="Problems to print.")


def main(argv: list[str]) -> None:
    """Checks the set that the command line names; an error says how to repair it."""
    settings = load(
        VerifySettings,
        argv,
        prog=command("verify"),
        examples=EXAMPLES,
    )
    verify(settings)


def verify(settings: VerifySettings) -> None:
    """Checks a set, repairs it if that is asked for, and prints what was found.

    Raises:
        UserError: something is wrong with the set; the message has the command that repairs it.
    """
    # here, because Ray takes seconds that a mistake need not wait for
    from data_prep.integrity.repair import repair
    from dynamonet import cluster

    console, folder = Console(), Folder.at(settings.shards_path(settings.shards))
    console.print(f"shards   {escape(folder.path)}", soft_wrap=True)
    with cluster.connected():
        result = _check(console, folder, settings)
        if not result.problems:
            console.print("ok")
            return
        if not settings.repair:
            raise UserError(
                f"{folder.path}: {len(result.problems)} problems",
                f"Rebuild only what is damaged with\n  {repair_command(folder)}",
            )
        with progress_bars(console) as on_progress:
            done = repair(folder, result, settings.source, on_progress)
        tars = ", ".join(done.rebuilt) or "none"
        console.print(f"repaired; tars made again: {tars}", soft_wrap=True)
        if not done.same_content:
            console.print(
                "warning: the content of the set has changed (its card has another digest): "
                "this version of FFmpeg decodes or encodes differently",
                soft_wrap=True,
            )
        result = _check(console, folder, settings)
    if result.problems:
        raise UserError(
            f"{folder.path}: {len(result.problems)} problems are left after the repair. Make the "
            "set again with stage 1 in another folder"
        )
    console.print("ok")


def _check(console: Console, folder: Folder, settings: VerifySettings) -> CheckResult:
    from data_prep.integrity.check_set import check_set

    began = time.monotonic()
    with progress_bars(console) as on_progress:
        result = check_set(folder, decode=settings.decode, on_progress=on_progress)
    table = Table("checked", "count", title="Check", title_justify="left")
    table.columns[1].justify = "right"
    rows = {
        "tars": len(result.shards),
        "intact tars": len(result.good),
        "bytes": result.bytes,
        "samples": result.samples,
        "frames decoded": result.frames if settings.decode else "off",
        "seconds": round(time.monotonic() - began),
        "problems": len(result.problems),
        "warnings": len(result.warnings),
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
    console.print(table)
    for lines, kind in ((result.problems, "problem"), (result.warnings, "warning")):
        for line in lines[: settings.show]:
            console.print(f"{kind}: {escape(str(line))}", soft_wrap=True, highlight=False)
        if len(lines) > settings.show:
            console.print(f"... and {len(lines) - settings.show:,} more; --show N prints N")
    return result


if __name__ == "__main__":
    run_entry(main)
