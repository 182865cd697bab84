"""A finished model on video files. `python finetune/predict.py MODEL VIDEO...`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import UserError, run_entry
from dynamonet.storage import check_output
from dynamonet.video.files import find_videos
from finetune.prediction.settings import PredictSettings

if TYPE_CHECKING:
    from finetune.prediction.archive import Embedded
    from finetune.prediction.predictor import Predictor
    from finetune.prediction.videos import FilePredictions

EXAMPLES = """examples:
  {predict} runs/finetune/<name>/model clip.mp4
  {predict} MODEL videos/ --window_seconds 2 --output predictions.csv
  {predict} MODEL long.mkv --step_seconds 10 --filmstrip strips/
  {predict} PRETRAINED videos/ --features features.parquet
  {predict} PRETRAINED archive/ data/shards/own --features archive-features/

The last writes parts into a folder, on Ray, and goes on where it was stopped.
"""
KINDS = (".json", ".csv", ".parquet")


def main(argv: list[str]) -> FilePredictions | Embedded:
    """Predicts as the command line says; --help lists all options.

    Raises:
        UserError: see `predict`, or a video that could not be read (after all others are done).
    """
    options = load(
        PredictSettings,
        argv,
        prog=command("predict"),
        examples=EXAMPLES,
    )
    if options.in_parts:
        return _embed(options)
    result = predict(options)
    if result.failed:
        from finetune.prediction.videos import lines

        total = len(result.failed) + len(result.videos)
        raise UserError(
            f"{len(result.failed)} of {total} could not be read:\n  {lines(result.failed)}"
        )
    return result


def _embed(options: PredictSettings) -> Embedded:
    """Writes the features of an archive, and says what is there now.

    Raises:
        UserError: see `embed`, or a video that could not be read (after all others are done).
    """
    asked = [name for name in ("output", "filmstrip") if getattr(options, name) is not None]
    if asked:
        raise UserError(f"--{asked[0]}: of videos; with --features FOLDER features alone are made")
    from finetune.prediction.archive import FAILED, embed

    console = Console()
    found = embed(options, console)
    damaged = f"; {found.damaged:,} are damaged in places" if found.damaged else ""
    console.print(
        f"written  {options.features}: {found.windows:,} windows of {found.done:,} videos and "
        f"segments, {found.done_before:,} were there{damaged}",
        soft_wrap=True,
        highlight=False,
    )
    if found.failed:
        name, why = next(iter(found.failed.items()))
        raise UserError(
            f"{len(found.failed):,} could not be read, e.g. {name}: {why}\n"
            f"All are in {options.features}/{FAILED}; the same command tries them again"
        )
    return found


def predict(options: PredictSettings) -> FilePredictions:
    """Reads videos window by window, prints what the model says, and writes what is asked for.

    Returns:
        The classes of each video and of each of its windows, and what could not be read, with
        reasons.

    Raises:
        UserError: no model, no classifier where one is needed, a file that cannot be written, or
            no video that could be read.
    """
    _check_outputs(options)
    console = Console()
    videos, failed = find_videos(list(options.videos))
    if not videos:
        reasons = "\n  ".join(f"{name}: {why}" for name, why in failed.items())
        raise UserError(f"no video to read:\n  {reasons}")
    # here, because torch takes seconds that a mistake need not wait for
    from finetune.prediction.predictor import Predictor
    from finetune.prediction.videos import predict_files, print_line
    from finetune.prediction.writers import write_predictions

    predictor = Predictor.of(options)
    _check_classifier(predictor, options)
    how = f"{predictor.device} in {predictor.precision}, {predictor.clip_text()}"
    print_line(console, f"model    {predictor.folder} on {how}")
    result = predict_files(predictor, videos, failed, options, console)
    if options.output is not None:
        model = str(predictor.folder)
        write_predictions(options.output, model, predictor.classes, result.videos, result.failed)
        print_line(console, f"written  {options.output}")
    return result


def _check_outputs(options: PredictSettings) -> None:
    """Refuses outputs that could not be written, before anything is read."""
    check_output("--output", options.output, *KINDS, overwrite=options.overwrite)
    check_output("--features", options.features, ".parquet", overwrite=options.overwrite)
    if options.features is not None and options.features == options.output:
        raise UserError(f"--output and --features both name {options.output}; give two names")
    if options.filmstrip is not None:
        try:
            options.filmstrip.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"--filmstrip {options.filmstrip}: {error.strerror}") from None


def _check_classifier(predictor: Predictor, options: PredictSettings) -> None:
    wants_classes = options.output is not None or options.filmstrip is not None
    if not predictor.classes and (wants_classes or options.features is None):
        raise UserError(
            f"{predictor.folder}: this model has no classifier. Give it one with\n"
            f"  {command('finetune')} --dataset folder --pretrained {predictor.folder}\n"
            "or ask for its features alone with --features FILE.parquet"
        )


if __name__ == "__main__":
    run_entry(main)
