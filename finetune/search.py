"""Segments found by their embeddings. `python finetune/search.py nearest|outliers|label-next`"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dynamonet.command_line import load
from dynamonet.commands import command, fill
from dynamonet.errors import SettingsError, UserError, run_entry
from dynamonet.storage import check_output
from finetune.retrieval.settings import LabelNextSettings, NearestSettings, OutlierSettings

if TYPE_CHECKING:
    import numpy as np

    from finetune.retrieval.features import FeatureTable

EXAMPLES = """examples:
  {predict} MODEL videos/ --features features.parquet
  {search} nearest features.parquet --query videos/a.mp4@12.5 --gallery near.html
  {search} nearest features.parquet --query new.mp4 --model MODEL
  {search} outliers features.parquet --top 50 --output odd.csv
  {search} label-next features.parquet --budget 30 --output labels.csv
  {search} label-next features.parquet --labelled labels.csv --budget 30
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
    name = argv[0] if argv else ""
    if name in ("-h", "--help"):
        abouts = "\n".join(f"  {each:12}{own.__doc__}" for each, (own, _) in COMMANDS.items())
        print(f"usage: {command('search')} COMMAND FEATURES [--key value ...]\n\n{abouts}")
        print(f"\nCOMMAND --help shows its settings.\n\n{fill(EXAMPLES)}", end="")
        return []
    if name not in COMMANDS:
        raise SettingsError(f"{name or 'COMMAND'}: expected one of {', '.join(COMMANDS)}")
    model, search = COMMANDS[name]
    options = load(
        model,
        argv[1:],
        prog=f"{command('search')} {name}",
        examples=EXAMPLES,
    )
    added = getattr(options, "labelled", None) is not None and options.labelled == options.output
    check_output("--output", options.output, ".csv", ".json", overwrite=options.overwrite or added)
    check_output("--gallery", options.gallery, overwrite=options.overwrite)
    from finetune.retrieval.features import read_features

    windows = read_features(options.features, options.by)
    hits = search(windows, options)
    _show(hits)
    if options.output is not None:
        if search is label_next and options.output.suffix == ".csv":
            _write_labels(options.output, hits, windows, added=added)
        else:
            _write(options.output, [asdict(hit) for hit in hits])
        print(f"written  {options.output}")
    if options.gallery is not None:
        from finetune.retrieval.gallery import write_gallery

        write_gallery(options.gallery, f"{name}: {model.__doc__}", hits)
        print(f"written  {options.gallery}")
    return hits


def nearest(windows: FeatureTable, options: NearestSettings) -> list[Hit]:
    """Finds the windows nearest to a query; none of the query's own that overlap it in time."""
    import numpy as np

    from finetune.retrieval.index import NearestRows
    from finetune.retrieval.queries import holding, split_query, windows_of_new

    name, seconds = split_query(windows, options.query)
    own = windows.of(name)
    rows, barred = NearestRows.of(windows), own[:0]
    if len(own):
        at = own if seconds is None else own[holding(windows, own, seconds, name)]
        start, end = windows.start_seconds, windows.end_seconds
        barred = own[[any(start[i] < end[q] and start[q] < end[i] for q in at) for i in own]]
        query = rows.rows(at)
    else:
        query = windows_of_new(windows, rows.scaling, name, seconds, options)
    far: dict[int, float] = {}
    for distances, found in zip(*rows.search(query, options.top, without=barred), strict=True):
        for distance, i in zip(distances.tolist(), found.tolist(), strict=True):
            if i >= 0:
                far[i] = min(distance, far.get(i, np.inf))
    order = sorted(far, key=lambda i: (far[i], i))[: options.top]
    hits = _hits(windows, order, far)
    if not hits:
        raise UserError(f"{windows.place}: no window but the query's own; add videos")
    return hits


def outliers(windows: FeatureTable, options: OutlierSettings) -> list[Hit]:
    """Finds the windows that lie farthest from those of all other videos."""
    from finetune.retrieval.index import NearestRows, isolation

    far = isolation(NearestRows.of(windows), windows.group, options.neighbours)
    if far[0] != far[0]:
        raise UserError(f"{windows.place}: windows of one video only; outliers need two or more")
    return _hits(windows, (-far).argsort(kind="stable")[: options.top], far)


def label_next(windows: FeatureTable, options: LabelNextSettings) -> list[Hit]:
    """Chooses the videos to label next, each by the mean of its windows."""
    import numpy as np

    from finetune.retrieval.knn import cover, unit
    from finetune.retrieval.queries import labelled_videos

    rows, group = windows.rows, windows.group
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


def _hits(windows: FeatureTable, order: list[int] | np.ndarray, far: object) -> list[Hit]:
    hits = []
    for rank, i in enumerate(order, 1):
        distance = float(far[i])  # type: ignore[index]
        times = float(windows.start_seconds[i]), float(windows.end_seconds[i])
        known = distance if distance == distance else None
        hits.append(Hit(rank, windows.videos[i], windows.paths[i], *times, known))
    return hits


def _write_labels(file: Path, hits: list[Hit], windows: FeatureTable, *, added: bool) -> None:
    """Writes the videos with a column to fill in, below the rows that a person wrote."""
    from finetune.retrieval.queries import below, common_folder, read_labels

    base = common_folder(windows.paths)
    before = read_labels(file) if added else []
    rows = [{"path": below(hit.path, base), "label": ""} for hit in hits]
    there = {row["path"] for row in before}
    _write(file, [*before, *(row for row in rows if row["path"] not in there)])
    print(
        "fill in the column label, then\n"
        f"  {command('shard')} --source {base} --dataset folder --lists {file}"
    )


def _write(file: Path, rows: list[dict[str, Any]]) -> None:
    from dynamonet.storage import atomic_file

    with atomic_file(file) as growing:
        if file.suffix == ".json":
            growing.write_text(json.dumps(rows, indent=1, ensure_ascii=False) + "\n", "utf-8")
            return
        names = dict.fromkeys(name for row in rows for name in row)
        with growing.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(names))
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


COMMANDS: dict[str, tuple[Any, Callable[..., list[Hit]]]] = {
    "nearest": (NearestSettings, nearest),
    "outliers": (OutlierSettings, outliers),
    "label-next": (LabelNextSettings, label_next),
}


if __name__ == "__main__":
    run_entry(main)
