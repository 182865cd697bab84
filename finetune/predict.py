"""A finished model on video files. `python finetune/predict.py MODEL VIDEO...`"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.errors import UserError, run_entry
from dynamonet.video.files import find_videos
from finetune.settings import PredictOptions

if TYPE_CHECKING:
    from finetune.predictions import Predicted
    from finetune.recognise import Recogniser

EXAMPLES = """examples:
  python finetune/predict.py runs/finetune/<name>/model clip.mp4
  python finetune/predict.py MODEL videos/ --window_seconds 2 --output predictions.csv
  python finetune/predict.py MODEL long.mkv --step_seconds 10 --filmstrip strips/
  python finetune/predict.py PRETRAINED videos/ --features features.parquet
"""
KINDS = (".json", ".csv", ".parquet")
_MOST_SECONDS = 3600.0


def main(argv: list[str]) -> Predicted:
    """Predicts as the command line says; --help lists all options.

    Raises:
        UserError: no model, no classifier where one is needed, a file that cannot be written, or
            a video that could not be read (after all others are done).
    """
    options = PredictOptions(**vars(_parser().parse_args(argv)))
    _check_outputs(options)
    console = Console()
    videos, failed = find_videos(options.videos)
    if not videos:
        reasons = "\n  ".join(f"{name}: {why}" for name, why in failed.items())
        raise UserError(f"no video to read:\n  {reasons}")
    # here, because torch takes seconds that a mistake need not wait for
    from finetune.outputs import write_reports
    from finetune.predictions import lines, predict, say
    from finetune.recognise import Recogniser

    recogniser = Recogniser(
        options.model, batch_size=options.batch_size, pictures=options.filmstrip is not None
    )
    _check_classifier(recogniser, options)
    say(console, f"model    {recogniser.folder} on {recogniser.device}, {recogniser.clip_text()}")
    found = predict(recogniser, videos, failed, options, console)
    if options.output is not None:
        model = str(recogniser.folder)
        write_reports(options.output, model, recogniser.classes, found.videos, found.failed)
        say(console, f"written  {options.output}")
    if found.failed:
        total = len(found.failed) + len(found.videos)
        raise UserError(
            f"{len(found.failed)} of {total} could not be read:\n  {lines(found.failed)}"
        )
    return found


def _check_outputs(options: PredictOptions) -> None:
    """Refuses outputs that could not be written, before anything is read."""
    if options.output is not None and options.output.suffix not in KINDS:
        raise UserError(f"--output {options.output}: expected a name ending in {', '.join(KINDS)}")
    if options.features is not None and options.features.suffix != ".parquet":
        raise UserError(f"--features {options.features}: expected a name ending in .parquet")
    if options.features is not None and options.features == options.output:
        raise UserError(f"--output and --features both name {options.output}; give two names")
    for file in (options.output, options.features):
        if file is not None and not file.absolute().parent.is_dir():
            raise UserError(f"{file}: there is no folder {file.absolute().parent}; make it first")
    if options.filmstrip is not None:
        try:
            options.filmstrip.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--filmstrip {options.filmstrip}: {error.strerror}") from None


def _check_classifier(recogniser: Recogniser, options: PredictOptions) -> None:
    wants_classes = options.output is not None or options.filmstrip is not None
    if not recogniser.classes and (wants_classes or options.features is None):
        raise UserError(
            f"{recogniser.folder}: this model has no classifier. Give it one with\n"
            f"  python finetune/run.py --dataset folder --pretrained {recogniser.folder}\n"
            "or ask for its features alone with --features FILE.parquet"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python finetune/predict.py",
        description="Tells what a finished model sees in videos, window by window.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", help="folder of a model, or its Hugging Face hub id")
    parser.add_argument(
        "videos", nargs="+", metavar="VIDEO", help="a video, or a folder searched to any depth"
    )
    parser.add_argument(
        "--window_seconds",
        type=seconds,
        help="length of a window, whose clips are averaged; default and least: what a clip covers",
    )
    parser.add_argument(
        "--step_seconds",
        type=seconds,
        help="from one window's start to the next; default: the window's length",
    )
    parser.add_argument("--top", type=count, default=5, help="classes to tell (default: 5)")
    parser.add_argument(
        "--batch_size", type=count, default=8, help="clips run together (default: 8)"
    )
    parser.add_argument("--output", type=Path, help="FILE.json, FILE.csv or FILE.parquet to write")
    parser.add_argument(
        "--filmstrip", type=Path, metavar="FOLDER", help="folder for a picture of each video"
    )
    parser.add_argument(
        "--features", type=Path, metavar="FILE", help="FILE.parquet for features of each window"
    )
    return parser


def seconds(text: str) -> float:
    """Reads a length of time from the command line."""
    value = float(text)
    if not 0 < value <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"expected 0 to {_MOST_SECONDS:g} seconds, found {text}")
    return value


def count(text: str) -> int:
    """Reads a number of things from the command line."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected 1 or more, found {text}")
    return value


if __name__ == "__main__":
    run_entry(main)
