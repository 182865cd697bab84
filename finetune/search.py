"""Segments found by their embeddings. `python finetune/search.py nearest|outliers|label-next`"""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dynamonet.errors import UserError, run_entry

if TYPE_CHECKING:
    import numpy as np

    from finetune.embeddings import Windows

EXAMPLES = """examples:
  python finetune/predict.py MODEL videos/ --features features.parquet
  python finetune/search.py nearest features.parquet --query videos/a.mp4@12.5 --gallery near.html
  python finetune/search.py nearest features.parquet --query new.mp4 --model MODEL
  python finetune/search.py outliers features.parquet --top 50 --output odd.csv
  python finetune/search.py label-next features.parquet --budget 30 --output labels.csv
  python finetune/search.py label-next features.parquet --labelled labels.csv --budget 30
"""
SHOWN = 30  # rows printed


@dataclass(frozen=True)
class Hit:
    """A window that was found, or a video with its most typical window."""

    rank: int
    video: str
    path: str
    start_seconds: float
    end_seconds: float
    distance: float | None


def main(argv: list[str]) -> list[Hit]:
    """Searches as the command line says.

    Raises:
        UserError: the features, the query or an output cannot be used.
    """
    options = _parser().parse_args(argv)
    for file in (options.output, options.gallery):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.absolute().parent}; make it first")
    if options.output is not None and options.output.suffix not in (".csv", ".json"):
        raise UserError(f"--output {options.output}: expected a name ending in .csv or .json")
    from finetune.embeddings import read_windows

    windows = read_windows(options.features, options.by)
    hits = options.command(windows, options)
    _show(hits)
    if options.output is not None:
        _write(options.output, hits, windows, options.labels)
        print(f"written  {options.output}")
    if options.gallery is not None:
        from finetune.gallery import write_gallery

        write_gallery(options.gallery, options.title, hits)
        print(f"written  {options.gallery}")
    return hits


def nearest(windows: Windows, options: argparse.Namespace) -> list[Hit]:
    """Finds the windows nearest to a query; none of the query's own that overlap it in time."""
    from finetune.neighbours import distances
    from finetune.queries import holding, split_query, windows_of_new

    name, seconds = split_query(windows, options.query)
    own = windows.of(name)
    rows = windows.scaled(windows.parts)
    if len(own):
        at = own if seconds is None else own[holding(windows, own, seconds, name)]
        query = rows[at]
        start, end = windows.start_seconds, windows.end_seconds
        barred = [i for i in own for q in at if start[i] < end[q] and start[q] < end[i]]
    else:
        query, barred = windows_of_new(windows, name, seconds, options.model, options.by), []
    far = distances(query, rows).min(0)
    far[barred] = float("inf")
    order = far.argsort(kind="stable")[: options.top]
    found = _hits(windows, [i for i in order if far[i] < float("inf")], far)
    if not found:
        raise UserError(f"{windows.file}: no window but the query's own; add videos")
    return found


def outliers(windows: Windows, options: argparse.Namespace) -> list[Hit]:
    """Finds the windows that lie farthest from those of all other videos."""
    from finetune.neighbours import isolation

    far = isolation(windows.scaled(windows.parts), windows.group, options.neighbours)
    if far[0] != far[0]:
        raise UserError(f"{windows.file}: windows of one video only; outliers need two or more")
    return _hits(windows, (-far).argsort(kind="stable")[: options.top], far)


def label_next(windows: Windows, options: argparse.Namespace) -> list[Hit]:
    """Chooses the videos to label next, each by the mean of its windows."""
    import numpy as np

    from finetune.neighbours import cover, unit
    from finetune.queries import labelled_videos

    rows, group = windows.scaled(windows.parts), windows.group
    counts = np.bincount(group)
    means = np.zeros((len(counts), rows.shape[1]), np.float32)
    np.add.at(means, group, rows)
    means = unit(means)
    known = (
        labelled_videos(windows, options.labelled) if options.labelled else np.zeros(0, np.int64)
    )
    left = len(means) - len(known)
    if options.budget > left:
        raise UserError(f"--budget {options.budget}: {left} videos are not labelled yet")
    chosen, far = cover(means, options.budget, known)
    typical = (rows * means[group]).sum(1)
    members = [np.flatnonzero(group == g) for g in chosen]
    best = [int(own[typical[own].argmax()]) for own in members]
    return _hits(windows, best, dict(zip(best, far, strict=True)))


def _hits(windows: Windows, order: list[int] | np.ndarray, far: object) -> list[Hit]:
    hits = []
    for rank, i in enumerate(order, 1):
        distance = float(far[i])  # type: ignore[index]
        times = float(windows.start_seconds[i]), float(windows.end_seconds[i])
        known = distance if distance == distance else None
        hits.append(Hit(rank, windows.videos[i], windows.paths[i], *times, known))
    return hits


def _write(file: Path, hits: list[Hit], windows: Windows, labels: bool) -> None:
    from dynamonet.storage import whole_file
    from finetune.queries import below, common_folder

    rows = [asdict(hit) for hit in hits]
    if labels and file.suffix == ".csv":
        base = common_folder(windows.paths)
        rows = [{"path": below(hit.path, base), "label": ""} for hit in hits]
        print(
            "fill in the column label, then\n"
            f"  python data_prep/shard.py --source {base} --dataset folder --lists {file}"
        )
    with whole_file(file) as growing:
        if file.suffix == ".json":
            growing.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
            return
        with growing.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)


def _show(hits: list[Hit]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "distance", "from s", "to s"):
        table.add_column(name, justify="right")
    table.add_column("video", overflow="fold")
    for hit in hits[:SHOWN]:
        far = "" if hit.distance is None else f"{hit.distance:.3f}"
        times = f"{hit.start_seconds:.1f}", f"{hit.end_seconds:.1f}"
        table.add_row(str(hit.rank), far, *times, Text(hit.video))
    Console().print(table)


def _parser() -> argparse.ArgumentParser:
    words = {"formatter_class": argparse.RawDescriptionHelpFormatter, "epilog": EXAMPLES}
    parser = argparse.ArgumentParser(
        prog="python finetune/search.py",
        description="Finds segments by the features that predict.py --features wrote.",
        **words,  # type: ignore[arg-type]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, run, about in (
        ("nearest", nearest, "windows nearest to a query"),
        ("outliers", outliers, "windows farthest from those of all other videos"),
        ("label-next", label_next, "videos to label next: diverse, and not like labelled ones"),
    ):
        one = commands.add_parser(name, help=about, description=about, **words)  # type: ignore[arg-type]
        one.set_defaults(command=run, title=f"{name}: {about}", labels=run is label_next)
        one.add_argument("features", type=Path, metavar="FEATURES")
        one.add_argument("--by", choices=("features", "dmr", "both"), default="both")
        one.add_argument("--output", type=Path, help="FILE.csv or FILE.json")
        one.add_argument("--gallery", type=Path, help="FILE.html with pictures")
        if run is label_next:
            one.add_argument("--labelled", type=Path, help="CSV of path[,label] known already")
            one.add_argument("--budget", type=count, default=20, help="videos (default: 20)")
            continue
        one.add_argument("--top", type=count, default=20, help="windows (default: 20)")
        if run is outliers:
            one.add_argument("--neighbours", type=count, default=10, help="k (default: 10)")
        else:
            one.add_argument("--query", required=True, metavar="VIDEO[@SECONDS]")
            one.add_argument("--model", help="the model of FEATURES, for a video not in it")
    return parser


def count(text: str) -> int:
    """Reads a number of things from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


if __name__ == "__main__":
    run_entry(main)
