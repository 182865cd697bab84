"""Stage 2: pretraining. `python pretrain/run.py`, or `ray job submit -- python pretrain/run.py`"""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.commands import command
from dynamonet.errors import run_entry
from pretrain.settings import PretrainSettings

if TYPE_CHECKING:
    from dynamonet.shards.shard_set import ShardSet
    from dynamonet.training.launch import TrainingResult

EXAMPLES = """examples:
  {pretrain}                                   with the defaults
  {pretrain} --config tiny --shards motion --optimizer.lr 0.001
  {pretrain} --shards ours,theirs --shares 3,1
  ray job submit -- {pretrain} --num_workers 8
"""


def main(argv: list[str]) -> TrainingResult:
    """Pretrains as the command line says; --help lists all settings."""
    settings = load(
        PretrainSettings,
        argv,
        prog=command("pretrain"),
        examples=EXAMPLES,
    )
    return pretrain(settings)


def pretrain(settings: PretrainSettings) -> TrainingResult:
    """Runs stage 2, prints where its results are, and returns them.

    Raises:
        UserError: no shards, too few resources, or something else that the user can mend.
    """
    from dynamonet.shards.shard_set import ShardSet

    console = Console()
    paths = settings.shards_paths()
    sets = [ShardSet.open(path) for path in paths]
    # here, because torch, Ray and MLflow take seconds that a mistake need not wait for
    from dynamonet import cluster

    with cluster.connected(importing=cluster.HEAVY):
        return _pretrain(settings, paths, sets, console)


def _pretrain(
    settings: PretrainSettings, paths: list[str], sets: list[ShardSet], console: Console
) -> TrainingResult:
    from dynamonet.model.files import locate
    from dynamonet.model.network import DynamoNet
    from dynamonet.report.page import write_report
    from dynamonet.shards.shard_set import ShardSet
    from dynamonet.training.checkpoint.state import read_state
    from dynamonet.training.checkpoint.store import newest
    from dynamonet.training.launch import launch
    from dynamonet.training.start import model_at
    from pretrain.frozen import Verdict
    from pretrain.objective import Pretraining

    for path, shards in zip(paths, sets, strict=True):
        console.print(f"shards   {path}: {len(shards):,} segments", soft_wrap=True)
    subject = "-".join(shards.name for shards in sets)
    uses = [shards.use("training") for shards in sets]
    probe = settings.probe.shards and settings.shards_path(settings.probe.shards)
    if probe:
        sets.append(ShardSet.open(probe))
        uses.append(sets[-1].use("evaluation"))
    start = None if settings.pretrained == "none" else model_at(locate(settings.pretrained))
    task = Pretraining(settings, tuple(paths), probe or None, str(start.folder) if start else None)
    if start:
        console.print(f"weights  {start.folder}", soft_wrap=True)
        console.print(f"         {task.fit(DynamoNet(settings.model))}")
    made_by = (*(each.origin for each in sets), start.origin if start else None)
    origins = {origin.id: origin for origin in made_by if origin}
    done = launch(
        "pretrain",
        subject,
        task,
        parents=list(origins.values()),
        datasets=uses,
        console=console,
    )
    checkpoint = newest(done.folder)
    seen = read_state(checkpoint).samples if checkpoint else 0
    if seen:
        console.print(f"seen     {seen:,} clips; {task.verdict(seen)}", soft_wrap=True)
    if found := done.run.metrics("verdict/"):
        verdict = Verdict(found)
        line = verdict.line(str(done.model))
        done.run.tag(choice=line)
        console.print(f"[bold]verdict  {line}[/bold]", soft_wrap=True)
        if seen and start is None:  # what the curve is of
            console.print(f"more     {verdict.of_more_video(seen)}", soft_wrap=True)
    console.print(f"model    {done.model}", soft_wrap=True)
    console.print(f"report   {write_report(str(done.folder), settings)}", soft_wrap=True)
    console.print(f"MLflow   {done.run.ui_command()}", soft_wrap=True)
    console.print(
        f"next     {command('finetune')} --dataset ... --pretrained {done.model}",
        soft_wrap=True,
    )
    return done


if __name__ == "__main__":
    run_entry(main)
