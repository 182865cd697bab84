"""Networks to start from, side by side on one labelled set: plan, table, picture."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from dynamonet import cluster
from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.model.config import NetworkConfig
from dynamonet.model.files import MODEL
from dynamonet.model.network import DynamoNet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.start import Pretrained
from finetune.evaluation.run_results import measured_runs
from finetune.pretrained.load import (
    as_learnt,
    find_pretrained,
    is_foreign,
    pretrained_config,
    read_foreign,
)
from finetune.series.comparison_table import Row, best_of, draw, show, table_csv
from finetune.series.kept_features import KeptFeatures, keep_features
from finetune.series.probe import run_probe
from finetune.series_settings import ComparisonSettings
from finetune.settings import FinetuneSettings
from finetune.train.dry_run import dry_run
from finetune.train.experiment import RunResult, Start
from finetune.train.objective import TRUNK_RATE
from finetune.train.several import below_one, group_name, keep_files, run_each, single_runs
from finetune.train.splits import HELD_OUT

SCRATCH = "from scratch"


@dataclass(frozen=True)
class Candidate:
    """A network to start from, and the runs that are planned with it."""

    title: str
    network: NetworkConfig
    plan: dict[str, list[Start]]  # by recipe
    tries: list[Start]  # of the recipe full, whose rates are tried first; none = as given

    @property
    def starts(self) -> list[Start]:
        return [*self.tries, *(start for runs in self.plan.values() for start in runs)]


def compare_backbones(
    settings: ComparisonSettings, shards: ShardSet, console: Console
) -> list[Row]:
    """Trains all that is missing, prints the table, and writes CSV and picture.

    Raises:
        UserError: nothing to compare, or as a fine-tuning does.
    """
    name = group_name(settings, "backbones")
    candidates = plan(settings, shards, name)
    every = [start for each in candidates for start in each.starts]
    if settings.dry_run:
        _tell_plan(candidates, console)
        return []
    console.print(f"compare  {name}: {len(candidates)} networks, {len(every)} runs", soft_wrap=True)
    rows: list[Row] = []
    with ExitStack() as stack:
        if any("full" in each.plan for each in candidates):
            stack.enter_context(cluster.connected())
        above = stack.enter_context(below_one(name, settings, every[-1], console))
        for candidate in candidates:
            parameters = _trunk_size(candidate)
            probes = [s for r, runs in candidate.plan.items() if r != "full" for s in runs]
            kept = _features(probes, settings, console) if probes else None
            if kept is not None:
                minutes = kept.seconds / 60
                console.print(
                    f"features {candidate.title}: {len(kept.rows):,} clips, {minutes:.1f} minutes",
                    soft_wrap=True,
                )
            for recipe, runs in candidate.plan.items():
                if recipe == "full" or kept is None:
                    if candidate.tries:
                        tried = run_each(candidate.tries, name, console, above)
                        runs[:] = [_at_best_rate(start, tried) for start in runs]
                    done: list[RunResult] = [*run_each(runs, name, console, above)]
                else:
                    done = run_each(runs, name, console, above, partial(run_probe, kept=kept))
                rows.append(_row(candidate.title, recipe, parameters, kept, done))
                above.log_metrics({0: {_metric(rows[-1]): rows[-1].outcomes.mean}})
        show(rows, console)
        _tell_use(best_of(rows), candidates, console)
        keep_files(settings, above, table_csv(rows), draw(rows, shards.name), console)
    return rows


def _tell_use(best: Row, candidates: Sequence[Candidate], console: Console) -> None:
    """Prints the command that makes a model of the best row."""
    chosen = next(each for each in candidates if each.title == best.title)
    start = chosen.plan[best.recipe][0]
    settings = start.task.settings
    words = f"--dataset {settings.dataset} --shards {start.task.shards}"
    words += f" --pretrained {settings.pretrained} --recipe {best.recipe}"
    if best.recipe == "full" and chosen.tries:
        words += f" --optimizer.lr {settings.optimizer.lr:g} --trunk_rate {settings.trunk_rate:g}"
    console.print(f"a model  {command('finetune')} {words}", soft_wrap=True, highlight=False)


def plan(settings: ComparisonSettings, shards: ShardSet, name: str) -> list[Candidate]:
    """Finds the weights of all networks, and what is trained with each.

    Raises:
        UserError: a network cannot be found, two have one name, or nothing is left to train.
    """
    found = {e: find_pretrained(settings.single(pretrained=e)) for e in settings.backbones}
    titles = {each: _title(each, pretrained) for each, pretrained in found.items()}
    for each, title in titles.items():
        if (twins := [one for one, other in titles.items() if other == title]) != [each]:
            raise UserError(f"--backbones {' '.join(twins)}: one name in the table, {title}")
    own = [p for p in found.values() if p is not None and not is_foreign(p.folder)]
    candidates = []
    for each, pretrained in found.items():
        if pretrained is None:
            model = settings.model or (pretrained_config(own[0].folder) if own else None)
            clips = as_learnt(settings.clips, own[0].folder) if own else settings.clips
            own_way = {"model": model, "clips": clips, "pixel_scale": None, "trunk_rate": 1.0}
            base = settings.single(pretrained="none", **own_way)
        else:
            place = pretrained.folder
            asks = is_foreign(place) and len(read_foreign(place).scales) > 1
            scale = settings.pixel_scale if asks else None
            base = settings.single(pretrained=str(place), model=None, pixel_scale=scale)
        starts: dict[str, list[Start]] = {}
        for recipe in settings.recipes:
            if _is_left_out(pretrained, recipe):
                continue
            update = {"recipe": recipe, "name": f"{name}-{titles[each].replace(' ', '-')}-{recipe}"}
            runs = single_runs(base.model_copy(update=update), shards.num_splits)
            starts[recipe] = Start.of_each(runs, shards)
        if starts:
            network = next(iter(starts.values()))[0].task.architecture
            fixed = settings.trunk_rate is not None or "full" not in starts
            tries = [] if fixed else _tries(starts["full"][0], shards)
            candidates.append(Candidate(titles[each], network, starts, tries))
    if not candidates:
        raise UserError(
            "nothing to compare: from scratch there is the recipe full alone, and encoders are "
            f"kept frozen; --backbones {' '.join(settings.backbones)} --recipes "
            f"{' '.join(settings.recipes)}"
        )
    return candidates


def _tries(start: Start, shards: ShardSet) -> list[Start]:
    """Plans a training at each of two rates, measured on videos held out of the training part.

    From scratch they are the rate given and three times that, else of the trunk: a tenth of the
    classifier's, and the same. None are planned where there are too few groups of videos.
    """
    base = start.task.settings
    rate = base.optimizer.lr
    scratch = not start.models
    pairs = ((rate, 1.0), (3 * rate, 1.0)) if scratch else ((rate, TRUNK_RATE), (rate, 1.0))
    runs: list[FinetuneSettings] = []
    for lr, share in pairs:
        optimizer = base.optimizer.model_copy(update={"lr": lr})
        update = {"optimizer": optimizer, "trunk_rate": share, "test": False, "val_share": HELD_OUT}
        name = f"{base.name}-lr{lr:g}-trunk{lr * share:g}"
        runs.append(base.model_copy(update={**update, "name": name}))
    tries = Start.of_each(runs, shards)
    try:
        tries[0].task.check()  # cuts the held-out part
    except UserError:
        return []
    return tries


def _at_best_rate(start: Start, tried: Sequence[RunResult]) -> Start:
    """Returns a training at the rates that held-out videos were classified best with."""
    best = max(tried, key=lambda run: (run.metrics["top1"], run.metrics["log_likelihood"]))
    update = {"optimizer": best.settings.optimizer, "trunk_rate": best.settings.trunk_rate}
    settings = start.task.settings.model_copy(update=update)
    return replace(start, task=replace(start.task, settings=settings))


def _is_left_out(pretrained: Pretrained | None, recipe: str) -> bool:
    """Tells whether a recipe makes no sense: probes of random features, encoders in full."""
    if pretrained is None:
        return recipe != "full"
    return recipe == "full" and pretrained.folder.is_dir() and is_foreign(pretrained.folder)


def _title(given: str, pretrained: Pretrained | None) -> str:
    if pretrained is None:
        return SCRATCH
    place = pretrained.folder if given == "newest" else Path(given)
    if pretrained.folder.is_file():
        return place.name.partition(".")[0]
    return place.parent.name if place.name == MODEL else place.name


def _features(
    starts: Sequence[Start], settings: ComparisonSettings, console: Console
) -> KeptFeatures:
    """Returns the features of all rows that some probes read."""
    parts = [start.task.parts for start in starts]
    rows = np.unique(np.concatenate([r for p in parts for r in (p.train, p.validation, p.test)]))
    attentive = [start for start in starts if start.task.settings.recipe == "attentive"]
    return keep_features(
        (attentive or starts)[0].task,
        rows,
        cells=bool(attentive),
        batch_clips=settings.batch_clips,
        console=console,
    )


def _row(
    title: str, recipe: str, parameters: int, kept: KeptFeatures | None, done: Sequence[RunResult]
) -> Row:
    minutes = [run.run.metrics("run/")["minutes"] for run in done]
    features = None if kept is None or recipe == "full" else kept.seconds / 60
    outcomes = measured_runs([run.folder for run in done]).outcomes
    return Row(title, recipe, parameters, features, float(np.mean(minutes)), outcomes)


def _metric(row: Row) -> str:
    return f"test/top1 {row.title} {row.recipe}"


def _trunk_size(candidate: Candidate) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in DynamoNet(candidate.network).trunk.parameters())


def _tell_plan(candidates: Sequence[Candidate], console: Console) -> None:
    for each in candidates:
        size = f"{each.network.num_frames} frames of {each.network.frame_px} px"
        runs = ", ".join(f"{recipe} x {len(runs)}" for recipe, runs in each.plan.items())
        runs += f" at the better of {len(each.tries)} rates" if each.tries else ""
        console.print(f"network  {each.title}: {size}; {runs}", soft_wrap=True)
    full = [start for each in candidates for start in each.plan.get("full", [])]
    if full:
        console.print("full     of the first one:")
        dry_run(full, console)
