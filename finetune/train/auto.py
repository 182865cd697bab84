"""The recipe `auto`: first what takes seconds, then a full training.

Validation keeps one of them. Where no validation part is cut off, both are tried with one that is,
and the better one is then done with all labels. Test videos decide nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.console import Console

from dynamonet.errors import UserError
from dynamonet.report.page import write_report
from dynamonet.shards.shard_set import ShardSet
from finetune.settings import FinetuneSettings, Recipe
from finetune.train.experiment import Result, Start
from finetune.train.splits import HELD_OUT

RECIPES: tuple[Recipe, ...] = ("ridge", "full")


def attempts(settings: FinetuneSettings, shards: ShardSet) -> list[Start]:
    """Returns both ways to do a run.

    Raises:
        UserError: see `Start.of_each`.
    """
    runs: list[FinetuneSettings] = []
    for recipe in RECIPES:
        name = settings.name and f"{settings.name}-{recipe}"
        runs.append(settings.model_copy(update={"recipe": recipe, "name": name}))
    return Start.of_each(runs, shards)


def run_auto(
    settings: FinetuneSettings, shards: ShardSet, console: Console, run: Callable[[Start], Result]
) -> Result:
    """Does a run both ways and returns the one to keep, which its report says.

    Args:
        run: Does one.

    Raises:
        UserError: as one run does.
    """
    ridge, full = starts = attempts(settings, shards)
    if len(ridge.task.parts.validation):
        done = [run(start) for start in starts]
        kept, line = _better(done)
    else:
        try:
            name = settings.name and f"{settings.name}-trial"
            update = {"val_share": HELD_OUT, "test": False, "name": name}
            trials = attempts(settings.model_copy(update=update), shards)
            trials[0].task.check()
        except UserError as error:
            console.print(f"kept     ridge: nothing tells which is better: {error}", soft_wrap=True)
            return run(ridge)
        chosen, line = _better([run(start) for start in trials])
        kept = run(ridge if chosen.settings.recipe == "ridge" else full)
        line += f", with {HELD_OUT:.0%} of the groups held out; then done with all labels"
    kept.run.tag(choice=line)
    write_report(str(kept.folder), settings)
    console.print(f"[bold]kept     {line}[/bold]", soft_wrap=True)
    console.print(f"model    {kept.model}", soft_wrap=True)
    return kept


def _better(done: Sequence[Result]) -> tuple[Result, str]:
    """Returns the run with the best accuracy, then likelihood, on validation videos, and why."""

    def score(result: Result) -> tuple[float, float]:
        return result.validated["top1"], result.validated["log_likelihood"]

    best = max(done, key=score)
    videos = f"{best.validated['videos']:.0f} validation videos"
    each = "; ".join(
        f"{result.settings.recipe} {result.validated['top1']:.1%} after {_spent(result)}"
        for result in done
    )
    return best, f"{best.settings.recipe}, by {videos}: {each}"


def _spent(result: Result) -> str:
    seconds = 60 * result.run.metrics("run/")["minutes"]
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.1f} minutes"
