"""Labels and splits: official layouts and lists, class folders, CSV files.

Each reader takes the paths that were found and returns a `Labelling`. A path that no list names,
and a listed file that is not there, are counted and reported, never guessed at.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from data_prep.sources.label_files import damaged, read_lines, read_rows
from dynamonet.errors import UserError

PARTS = ("train", "val", "test")
_PART_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "validate": "val",
    "test": "test",
    "testing": "test",
}
UCF_GROUP = r"^(.+_g\d+)_c\d+\."  # v_Class_g01_c01: clips of one video


@dataclass(frozen=True)
class Label:
    """What is known of one labelled video."""

    class_name: str
    splits: tuple[str, ...]  # for split k at k - 1: train, val, test or "" (not used)
    group: str  # videos of one group must share a side of any split


@dataclass(frozen=True)
class Labelling:
    """Labels of a set and how its lists and its files agree."""

    classes: list[str]
    num_splits: int
    labels: dict[str, Label] = field(default_factory=dict)  # by source path
    missing: list[str] = field(default_factory=list)  # listed, not found
    unlisted: list[str] = field(default_factory=list)  # found, not listed

    def class_counts(self) -> dict[str, int]:
        """Returns the videos found of each class, in label order."""
        counts = Counter(label.class_name for label in self.labels.values())
        return {name: counts[name] for name in self.classes}


def read_labels(
    dataset: str,
    paths: list[str],
    source: Path,
    lists: str | None,
    test_share: float,
    group_pattern: str = UCF_GROUP,
) -> Labelling:
    """Reads the labels of a set in one of the known layouts.

    Args:
        paths: Videos found, relative to `source`.
        lists: Folder of official lists, or the CSV of a folder set; None looks near `source`.
        group_pattern: Of class folders: what it finds in a file's name, or its first bracket, is
            the group.

    Raises:
        UserError: the lists are missing or damaged; the message says where they are looked for.
    """
    if dataset == "ucf101":
        return _ucf101(paths, _lists_folder(source, lists, "ucfTrainTestlist", "classInd.txt"))
    if dataset == "hmdb51":
        name = "hmdb51_testTrainMulti_7030_splits"
        return _hmdb51(paths, _lists_folder(source, lists, name, "*_test_split1.txt"))
    if dataset == "kinetics400":
        return _kinetics400(paths, _lists_folder(source, lists, "kinetics400", "*.csv"))
    table = Path(lists) if lists else next(iter(sorted(source.glob("*.csv"))), None)
    if table is not None:
        return _table(paths, table, test_share)
    return _class_folders(paths, test_share, group_pattern)


def _ucf101(paths: list[str], lists: Path) -> Labelling:
    """Source: UCF101, ucfTrainTestlist: `Class/v_Class_gNN_cNN.avi [label]`; groups are gNN."""
    classes = []
    for number, line in read_lines(lists / "classInd.txt"):
        match = re.fullmatch(r"\d+ (\S+)", line)
        if match is None:
            raise damaged(lists / "classInd.txt", number, line, "number Class")
        classes.append(match[1])
    parts: dict[str, list[str]] = {}
    for split, part in itertools.product((1, 2, 3), ("train", "test")):
        file = lists / f"{part}list{split:02d}.txt"
        for number, line in read_lines(file):
            name = line.split()[0]
            if name.split("/")[0] not in classes or name.count("/") != 1:
                raise damaged(file, number, line, "Class/video.avi, of a class of classInd.txt")
            parts.setdefault(name, ["", "", ""])[split - 1] = part
    listed = {}
    for name, splits in parts.items():
        class_name, file = name.split("/")
        group = re.search(r"_(g\d+)_", file)
        key = f"{class_name}/{group.group(1)}" if group else name
        listed[name] = Label(class_name, tuple(splits), key)
    return _match(classes, 3, listed, paths)


def _hmdb51(paths: list[str], lists: Path) -> Labelling:
    """Source: HMDB51, testTrainMulti_7030: `name.avi 0|1|2` = not used | train | test."""
    codes = {"0": "", "1": "train", "2": "test"}
    parts: dict[str, list[str]] = {}
    for file in sorted(lists.glob("*_test_split[123].txt")):
        class_name, split = re.fullmatch(r"(.+)_test_split([123])", file.stem).groups()  # type: ignore[union-attr]
        for number, line in read_lines(file):
            name, _, code = line.rpartition(" ")
            if code not in codes or not name:
                raise damaged(file, number, line, "name.avi 0|1|2")
            splits = parts.setdefault(f"{class_name}/{name.strip()}", ["", "", ""])
            splits[int(split) - 1] = codes[code]
    listed = {}
    for name, splits in parts.items():
        class_name, file_name = name.split("/")
        film = file_name.split(f"_{class_name}_")[0]  # clips of one film share a group
        listed[name] = Label(class_name, tuple(splits), f"{class_name}/{film}")
    return _match(sorted({name.split("/")[0] for name in parts}), 3, listed, paths)


def _kinetics400(paths: list[str], lists: Path) -> Labelling:
    """Source: Kinetics-400 csv: label, youtube_id, time_start, time_end, split."""
    by_clip: dict[tuple[str, int], Label] = {}
    labels_file = next(iter(lists.glob("label_map*400*.txt")), None)
    classes = {line for _, line in read_lines(labels_file)} if labels_file else set()
    for file in sorted(lists.glob("*.csv")):
        if re.search("600|700", file.name):
            continue
        for line, row in read_rows(file, {"youtube_id", "time_start", "split"}):
            label = (row.get("label") or "").strip('"')
            part = _PART_NAMES.get(row["split"].strip().lower(), "")
            try:
                clip = (row["youtube_id"], int(float(row["time_start"])))
            except ValueError:
                text = f"time_start {row['time_start']!r}, expected seconds"
                raise UserError(f"{file}: line {line}: {text}") from None
            if label and part:
                classes.add(label)
                by_clip[clip] = Label(label, (part,), row["youtube_id"])
    by_video = dict(by_clip.keys())
    labels: dict[str, Label] = {}
    seen, unlisted = set(), []
    for path in paths:
        stem = PurePosixPath(path).stem
        timed = re.fullmatch(r"(.{11})_(\d+)_(\d+)", stem)
        video, start = (timed[1], int(timed[2])) if timed else (stem[:11], by_video.get(stem, -1))
        if (video, start) in by_clip:
            labels[path] = by_clip[video, start]
            seen.add((video, start))
        else:
            unlisted.append(path)
    missing = [f"{video} from {start} s" for video, start in by_clip if (video, start) not in seen]
    return Labelling(sorted(classes), 1, labels, missing, unlisted)


def _table(paths: list[str], file: Path, test_share: float) -> Labelling:
    """A CSV with the columns path, label (or class), and split or fold, group (all three free).

    `fold` makes as many splits as there are folds: in split k, fold k - 1 is the test part. Without
    split and fold, a share of the groups is drawn to test. No group may stand on two sides.
    """
    rows = list(read_rows(file, {"path"}))
    if not rows:
        raise UserError(f"{file}: no rows")
    columns = list(rows[0][1])
    name = next((n for n in ("class_name", "class", "label") if n in columns), None)
    if name is None:
        raise UserError(f"{file}: no column `label` (or `class`); it has {', '.join(columns)}")
    has_folds = "fold" in columns and all(row["fold"].strip() for _, row in rows)
    folds = sorted({row["fold"].strip() for _, row in rows}, key=_natural) if has_folds else []
    listed, wrong = {}, []
    lines: dict[str, int] = {}
    for line, row in rows:
        path, class_name = row["path"].strip(), row[name].strip()
        group = row.get("group", "").strip() or path
        word = row.get("split", "").strip().lower()
        if not path or not class_name:
            wrong.append(f"line {line}: empty path or {name}")
        elif path in listed:
            wrong.append(f"line {line}: {path} was listed before, in line {lines[path]}")
        elif not folds and "split" in columns and word not in _PART_NAMES:
            wrong.append(f"line {line}: split {word!r}, expected train, val or test")
        else:
            splits = tuple("test" if row["fold"].strip() == fold else "train" for fold in folds)
            if not splits:
                splits = (_PART_NAMES[word] if "split" in columns else _draw(group, test_share),)
            listed[path] = Label(class_name, splits, group)
            lines[path] = line
    wrong += _torn_groups(listed, lines)
    if wrong:
        more = f"\n  ... and {len(wrong) - 10} more" if len(wrong) > 10 else ""
        raise UserError(f"{file}:\n  " + "\n  ".join(wrong[:10]) + more)
    classes = sorted({label.class_name for label in listed.values()}, key=_natural)
    return _match(classes, len(folds) or 1, listed, paths)


def _torn_groups(listed: dict[str, Label], lines: dict[str, int]) -> list[str]:
    """Says which groups stand on two sides of a split."""
    first: dict[str, str] = {}
    torn = {}
    for path, label in listed.items():
        before = listed[first.setdefault(label.group, path)]
        if label.splits != before.splits and label.group not in torn:
            torn[label.group] = (
                f"line {lines[path]}: group {label.group!r} is on another side of a split "
                f"than in line {lines[first[label.group]]}; put each group on one side"
            )
    return list(torn.values())


def _draw(name: str, test_share: float) -> str:
    """Draws test or train from a name alone, the same in every run."""
    draw = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    return "test" if draw < test_share * 2**64 else "train"


def _class_folders(paths: list[str], test_share: float, group_pattern: str) -> Labelling:
    """`class/video`, or `train|val|test/class/video`; without parts, groups are drawn to test."""
    top = {PurePosixPath(path).parts[0] for path in paths if "/" in path}
    has_parts = bool(top) and all(name.lower() in _PART_NAMES for name in top)
    depth = 2 if has_parts else 1
    labels, unlisted = {}, []
    for path in paths:
        words = PurePosixPath(path).parts
        if len(words) <= depth:
            unlisted.append(path)
            continue
        found = re.search(group_pattern, words[-1])
        group = "/".join((words[depth - 1], found.group(found.re.groups and 1))) if found else path
        part = _PART_NAMES[words[0].lower()] if has_parts else _draw(group, test_share)
        labels[path] = Label(words[depth - 1], (part,), group)
    classes = sorted({label.class_name for label in labels.values()}, key=_natural)
    return Labelling(classes, 1, labels, [], unlisted)


def _match(
    classes: list[str], num_splits: int, listed: dict[str, Label], paths: list[str]
) -> Labelling:
    """Finds listed names among paths: the whole path, else `folder/file` at its end.

    The ending may differ (a set converted to mp4 keeps its lists).
    """
    by_tail: dict[str, str] = {}
    for path in paths:
        pure = PurePosixPath(path)
        by_tail.setdefault(f"{pure.parent.name}/{pure.stem}", path)
    known = set(paths)
    labels, missing = {}, []
    for name, label in listed.items():
        pure = PurePosixPath(name)
        path = name if name in known else by_tail.get(f"{pure.parent.name}/{pure.stem}")
        if path is None:
            missing.append(name)
        else:
            labels[path] = label
    unlisted = [path for path in paths if path not in labels]
    return Labelling(classes, num_splits, labels, missing, unlisted)


def _lists_folder(source: Path, given: str | None, usual: str, pattern: str) -> Path:
    places = [Path(given)] if given else [source, source / usual, source.parent / usual]
    places += [] if given else [source / "splits" / usual, source.parent / "splits" / usual]
    for place in places:
        if place.is_dir() and any(place.glob(pattern)):
            return place
    tried = "\n  ".join(str(place) for place in places)
    raise UserError(
        f"the official lists ({pattern}) were not found in\n  {tried}\n"
        "Download them from the data set's page and name their folder with --lists"
    )


def _natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key that puts 2 before 10."""
    return [
        (0, int(word), "") if word.isdigit() else (1, 0, word)
        for word in re.split(r"(\d+)", text)
        if word
    ]
