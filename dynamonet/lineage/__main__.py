"""What stands behind a model: `python -m dynamonet.lineage MODEL_OR_RUN`"""

from __future__ import annotations

import json
from dataclasses import asdict

from pydantic import Field
from rich.console import Console
from rich.text import Text

from dynamonet.command_line import load, positional
from dynamonet.commands import command
from dynamonet.errors import run_entry
from dynamonet.lineage.tracer import LineageNode, Tracer
from dynamonet.stage import Places
from dynamonet.tracking.store import answering_soon


class LineageSettings(Places):
    """Shows which runs, shards, code and settings something was made from."""

    place: str = positional("Model, checkpoint, run folder, shard set or MLflow run id.")
    json_output: bool = Field(default=False, alias="json", description="Print JSON.")


def show(
    step: LineageNode, console: Console, indent: str = "", shown: set[str] | None = None
) -> None:
    """Prints a run, and below it, further to the right, what it was built on."""
    shown = set() if shown is None else shown

    def line(text: str, style: str = "") -> None:
        console.print(Text(indent + text, style), soft_wrap=True)

    line(f"{step.stage or 'run'} {step.name}".rstrip(), "bold")
    if step.id in shown:
        line("  as above")
        return
    shown.add(step.id)
    line(f"  run       {', '.join(each for each in (step.id, step.status, step.started) if each)}")
    for name, value in vars(step).items():
        if name in ("folder", "settings", "code"):
            line(f"  {name:9} {value or 'unknown'}", "" if value else "dim")
    for use in step.datasets:
        line(f"  shards    {use.digest} ({use.context}) {use.path or use.name}")
    for text in step.changed:
        line(f"  changed   {text}", "yellow")
    for text in step.notes:
        line(f"  note      {text}", "dim")
    for parent in step.parents:
        show(parent, console, indent + "    ", shown)


def main(argv: list[str]) -> LineageNode:
    """Traces what the command line names, and prints it."""
    settings = load(
        LineageSettings,
        argv,
        prog=command("lineage"),
    )
    with answering_soon():
        tracer = Tracer(settings.runs_path(), settings.shards_root_path())
        node = tracer.trace(tracer.find(settings.place))
    if settings.json_output:
        print(json.dumps(asdict(node), indent=2))
    else:
        show(node, Console(highlight=False))
    return node


if __name__ == "__main__":
    run_entry(main)
