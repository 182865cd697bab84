"""Checks a set of stage 1, and repairs it. `python data_prep/verify.py SHARDS [--repair]`"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from data_prep.shard import progress_bars
from dynamonet.errors import UserError, run_entry
from dynamonet.shards import index
from dynamonet.stage import StageSettings
from dynamonet.storage import Folder

if TYPE_CHECKING:
    from data_prep.checks import Findings

EXAMPLES = """examples:
  python data_prep/verify.py unlabelled                   the set in data/shards/unlabelled
  python data_prep/verify.py /data/shards/own --no-decode
  python data_prep/verify.py own --repair                 rebuilds what is damaged from the videos
"""


def main(argv: list[str]) -> None:
    """Checks the set that the command line names; an error says how to repair it."""
    words = _parser().parse_args(argv)
    folder = Folder.at(StageSettings(shards_root=words.shards_root).shards_path(words.shards))
    verify(
        folder,
        decode=words.decode,
        repair=words.repair,
        source=words.source,
        num_shown=words.show,
    )


def verify(
    folder: Folder,
    *,
    decode: bool = True,
    repair: bool = False,
    source: str | None = None,
    num_shown: int = 20,
) -> None:
    """Checks a set and prints what was found.

    Args:
        decode: Decode every frame, too.
        repair: Rebuild what is damaged, and check again.
        source: Where the videos are now; None = where the card says.
        num_shown: Problems to print.

    Raises:
        UserError: something is wrong with the set; the message has the command that repairs it.
    """
    # here, because Ray takes seconds that a mistake need not wait for
    from data_prep.repair import repair as rebuild
    from dynamonet import cluster

    console = Console()
    console.print(f"shards   {escape(folder.path)}", soft_wrap=True)
    with cluster.connected():
        found = _check(console, folder, decode, num_shown)
        if not found.problems:
            console.print("ok")
            return
        if not repair:
            raise UserError(
                f"{folder.path}: {len(found.problems)} problems. Rebuild only what is damaged "
                f"with\n  {index.repair_command(folder)}"
            )
        with progress_bars(console) as on_progress:
            done = rebuild(folder, found, source, on_progress)
        tars = ", ".join(done.rebuilt) or "none"
        console.print(f"repaired; tars made again: {tars}", soft_wrap=True)
        if not done.same_content:
            console.print(
                "warning: the set holds other content than before (another digest on its card): "
                "this version of FFmpeg decodes or encodes otherwise",
                soft_wrap=True,
            )
        found = _check(console, folder, decode, num_shown)
    if found.problems:
        raise UserError(
            f"{folder.path}: {len(found.problems)} problems are left after the repair. Make the "
            "set again with stage 1 in another folder"
        )
    console.print("ok")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python data_prep/verify.py",
        description="Checks a set of stage 1 against its index, byte by byte and frame by frame.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shards", help="a bare name below shards_root, a path or a URI")
    parser.add_argument(
        "--no-decode", dest="decode", action="store_false", help="leave out decoding, for speed"
    )
    parser.add_argument("--repair", action="store_true", help="rebuild exactly what is damaged")
    parser.add_argument(
        "--source", help="for --repair: folder of the videos, if they have moved since stage 1"
    )
    parser.add_argument("--show", type=int, default=20, help="problems to print (default 20)")
    parser.add_argument(
        "--shards_root",
        help="folder of all shard sets (default $DYNAMONET_SHARDS, else ./data/shards)",
    )
    return parser


def _check(console: Console, folder: Folder, decode: bool, num_shown: int) -> Findings:
    from data_prep.checks import check_set

    began = time.monotonic()
    with progress_bars(console) as on_progress:
        found = check_set(folder, decode=decode, on_progress=on_progress)
    table = Table("checked", "count", title="Check", title_justify="left")
    table.columns[1].justify = "right"
    rows = {
        "tars": len(found.shards),
        "of them whole": len(found.good),
        "bytes": found.bytes,
        "samples": found.samples,
        "frames decoded": found.frames if decode else "off",
        "seconds": round(time.monotonic() - began),
        "problems": len(found.problems),
        "warnings": len(found.warnings),
    }
    for name, value in rows.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) else value)
    console.print(table)
    for lines, kind in ((found.problems, "problem"), (found.warnings, "warning")):
        for line in lines[:num_shown]:
            console.print(f"{kind}: {escape(str(line))}", soft_wrap=True, highlight=False)
        if len(lines) > num_shown:
            console.print(f"... and {len(lines) - num_shown:,} more; --show N prints N")
    return found


if __name__ == "__main__":
    run_entry(main)
