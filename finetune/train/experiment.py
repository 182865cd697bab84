"""One run of stage 3: weights, training, test, and the line that says what its accuracy is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from dynamonet.model.config import ModelConfig
from dynamonet.model.network import DynamoNet
from dynamonet.report.page import write_report
from dynamonet.shards.settings import ClipSettings
from dynamonet.shards.shard_set import ShardSet
from dynamonet.tracking.origin import Origin
from dynamonet.tracking.runs import TrackedRun
from dynamonet.training.checkpoint.store import best, read_manifest
from dynamonet.training.launch import launch
from dynamonet.training.start import Pretrained, transfer
from finetune.evaluation import protocol
from finetune.evaluation.evaluator import views_line
from finetune.evaluation.leakage import Seen, find_seen, labels_spent
from finetune.evaluation.protocol import Protocol, Times, accuracy
from finetune.pretrained.load import (
    as_learnt,
    find_each,
    is_foreign,
    learnt_clips,
    pretrained_weights,
)
from finetune.settings import FinetuneSettings
from finetune.train.objective import Finetuning


@dataclass(frozen=True)
class RunResult:
    """A finished run."""

    settings: FinetuneSettings
    folder: Path
    run: TrackedRun
    metrics: dict[str, float]  # of the test part; of the validation part where nothing was tested
    protocol: Protocol | None  # None: nothing was tested


@dataclass(frozen=True)
class Result(RunResult):
    """A finished run with its model."""

    model: Path
    validated: dict[str, float]  # of the validation part, by that model; empty where there is none


@dataclass(frozen=True)
class Start:
    """A task, the weights that it starts from, and what those have seen of its test part."""

    task: Finetuning
    models: list[Pretrained]  # several are read together; none = from scratch
    seen: Seen

    @classmethod
    def of_each(cls, runs: Sequence[FinetuneSettings], shards: ShardSet) -> list[Start]:
        """Finds the weights of runs and compares what they were trained on with the test parts.

        Raises:
            UserError: there are none, or they have seen test videos and may not.
        """
        starts: list[Start] = []
        compared: dict[tuple[Path, bytes], Seen] = {}
        for settings in runs:
            models = find_each(settings)
            places = [str(model.folder) for model in models] or [None]
            if models:
                clips = as_learnt(settings.clips, models[0].folder)
                settings = settings.model_copy(update={"clips": clips})
            first, *beside = places
            task = Finetuning(settings, shards.folder.path, first, tuple(map(str, beside)))
            seen = Seen()
            for model in models if settings.test else ():
                test = model.folder, task.parts.test.tobytes()
                if test not in compared:
                    compared[test] = find_seen(model, shards, task.parts.test)
                seen |= compared[test]
                if not settings.allow_seen_test_videos:
                    compared[test].refuse(task.test_part.videos, str(model.folder))
            starts.append(cls(task, models, seen))
        return starts

    @property
    def parents(self) -> list[Origin]:
        """The runs that made what it builds on."""
        made_by = (*(model.origin for model in self.models), self.task.data.origin)
        return list({origin.id: origin for origin in made_by if origin}.values())

    def words(self) -> str:
        """Says what the training starts from."""
        return " and ".join(map(self._words, self.models)) or "from scratch"

    @staticmethod
    def _words(model: Pretrained) -> str:
        origin = model.origin
        uses = [use for use in origin.datasets if use.context != "evaluation"] if origin else []
        names = ", ".join(f"{use.name} ({use.digest[:8]})" for use in uses) or "unknown data"
        labels = labels_spent(origin)
        how = "pretrained on" if origin is None or origin.stage == "pretrain" else "trained on"
        return f"{model.folder} {how} {names}{', ' if labels else ''}{labels}"

    def protocol(self, times: Times, chosen: str | None = None) -> Protocol:
        """Returns all that the accuracy depends on.

        Args:
            chosen: By what the weights were chosen; None = a step of the training.
        """
        task, settings, parts = self.task, self.task.settings, self.task.parts
        names = task.data.table["source"].to_pylist()

        def videos(rows: Sequence[int]) -> int:
            return len({names[row] for row in rows})

        if chosen is None:
            chosen = "the last step"
            if settings.recipe == "ridge":
                chosen = "strengths by inner folds"
            elif task.keeps_best():
                chosen = f"the best step by {videos(parts.validation.tolist())} validation videos"
        held = [f"{k} {v}" for k, v in dict(settings.hold).items() if v is not None]
        return Protocol(
            test=task.test_part,
            times=times,
            views=views_line(task.architecture.num_frames, task.views),
            recipe=settings.recipe,
            train_videos=videos(parts.train.tolist()),
            chosen=chosen,
            seed=f"{settings.seed}" + (f" (held: {', '.join(held)})" if held else ""),
            start=self.words(),
            seen=str(self.seen),
        )


def run_once(start: Start, console: Console, above: TrackedRun | None = None) -> Result:
    """Trains and tests once, and prints where the results are.

    Args:
        above: The run below which it stands in the tracking store.

    Raises:
        UserError: the weights do not fit; or see `launch`.
    """
    task, settings, shards = start.task, start.task.settings, start.task.data
    console.print(
        f"shards   {shards.folder.path}: {len(shards):,} segments, {len(shards.classes)} classes, "
        f"split {settings.split} of {shards.num_splits}",
        soft_wrap=True,
    )
    networks = [task.architecture, *task.classifier_config().beside]
    for pretrained, network in zip(start.models, networks, strict=False):
        console.print(f"weights  {pretrained.folder}", soft_wrap=True)
        fitted = DynamoNet(ModelConfig.of(network).network)
        weights = pretrained_weights(pretrained.folder, fitted.config)
        if pretrained.note:
            console.print(f"         {pretrained.note}", soft_wrap=True)
        console.print(f"         {transfer(fitted, weights, settings.min_loaded_share)}")
        console.print(f"clips    {clips_line(settings.clips, pretrained.folder)}", soft_wrap=True)
    if not start.models:
        console.print("weights  from scratch")
    done = launch(
        "finetune",
        shards.name,
        task,
        parents=start.parents,
        datasets=[shards.use("training")],
        console=console,
        above=above,
    )
    found = tell(done.run, done.folder, start, console) if settings.test else None
    metrics = done.run.metrics("test/" if settings.test else "val/")
    if not settings.test:
        console.print("test     not measured (--test false); choose settings by val/top1")
    validated: dict[str, float] = {}
    if task.keeps_best() and (checkpoint := best(done.folder, task.best_by())):
        found_there = read_manifest(checkpoint)["metrics"].items()
        validated = {k.removeprefix("val/"): v for k, v in found_there if k.startswith("val/")}
        console.print(f"val      top-1 {validated['top1']:.1%}")
    console.print(f"model    {done.model}", soft_wrap=True)
    console.print(f"report   {write_report(str(done.folder), settings)}", soft_wrap=True)
    console.print(f"MLflow   {done.run.ui_command()}", soft_wrap=True)
    return Result(settings, done.folder, done.run, metrics, found, done.model, validated)


def clips_line(clips: ClipSettings, place: Path) -> str:
    """Describes how clips are cut, next to how the weights learnt from theirs."""
    own, learnt = (
        f"frames {each.spacing}, squares of {each.canvas_px} px"
        for each in (clips, learnt_clips(place))
    )
    if is_foreign(place):
        return own
    return (
        f"{own}, as the weights learnt" if own == learnt else f"{own}; the weights learnt {learnt}"
    )


def tell(
    run: TrackedRun, folder: Path, start: Start, console: Console, chosen: str | None = None
) -> Protocol:
    """Prints and keeps the accuracy of a measured run, with all that it depends on."""
    found = start.protocol(Times.of(run), chosen)
    found.write(folder)
    line = f"{accuracy(run.metrics('test/'))}: {protocol.line([found])}"
    run.tag(protocol=line)
    console.print(f"[bold]test     {line}[/bold]", soft_wrap=True)
    return found
