"""One HTML file about a run: `python -m dynamonet.report RUN`"""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from dynamonet.command_line import load, positional
from dynamonet.commands import command
from dynamonet.errors import run_entry
from dynamonet.report.page import write_report
from dynamonet.stage import Places


class ReportSettings(Places):
    """Writes one HTML file about a pretraining or fine-tuning run."""

    run: str = positional("Folder of the run, or its MLflow run id.")


def main(argv: list[str]) -> Path:
    """Writes the report of the run that the command line names, and says where it is."""
    settings = load(
        ReportSettings,
        argv,
        prog=command("report"),
    )
    file = write_report(settings.run, settings)
    Console().print(f"report   {file}", soft_wrap=True)
    return file


if __name__ == "__main__":
    run_entry(main)
