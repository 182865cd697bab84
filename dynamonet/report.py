"""One HTML file that tells of a run: `python -m dynamonet.report RUN`

Curves, pictures, test results, lineage, shards, settings; it opens anywhere, offline. Training
writes it at its end; the command writes it at any time, of a run that goes on or failed too.
"""

from __future__ import annotations

import argparse
import base64
import time
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from rich.console import Console

from dynamonet.errors import UserError, run_entry
from dynamonet.origin import utc
from dynamonet.reporting import findings
from dynamonet.reporting.curves import draw_charts
from dynamonet.reporting.findings import Findings
from dynamonet.stage import StageSettings
from dynamonet.storage import whole_file
from dynamonet.tracking_store import answering_soon

REPORT = "report.html"
# what stands at the top, where a run has it
HEADLINE = {
    "test/top1": ("top-1", "{:.1%}"),
    "test/top5": ("top-5", "{:.1%}"),
    "val/skill": ("skill on held-out videos", "{:.3f}"),
    "val/ceiling_shared": ("skill of the best shared filters", "{:.3f}"),
    "probe/knn_top1": ("nearest neighbours", "{:.1%}"),
    "probe/linear_top1": ("linear probe", "{:.1%}"),
    "train/clips_per_second": ("clips a second", "{:.1f}"),
    "train/mfu": ("of the device's peak (MFU)", "{:.0%}"),
}


def render_report(found: Findings) -> str:
    """Returns the page; every text in it is escaped, every picture inside it."""
    pages = Environment(
        loader=FileSystemLoader(Path(findings.__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    last = found.last
    return pages.get_template("page.html.j2").render(
        found=found,
        made=utc(time.time()),
        headline=[
            (name, form.format(last[key])) for key, (name, form) in HEADLINE.items() if key in last
        ],
        tests=[(k.removeprefix("test/"), f"{v:.4g}") for k, v in last.items() if k[:5] == "test/"],
        charts=[
            (chart, _inside("image/svg+xml", svg.encode()))
            for chart, svg in draw_charts(found.metrics)
        ],
        pictures=[(name, _inside("image/png", png)) for name, png in found.pictures.items()],
    )


def write_report(place: str, here: StageSettings) -> Path:
    """Writes a run's report into its folder and among its artifacts; returns the file.

    Args:
        place: Folder of a run, or an MLflow run id.
        here: Where runs and shards are.

    Raises:
        UserError: that is no run of a training, or its folder cannot be written.
    """
    with answering_soon():
        found = findings.gather(place, here)
        file = Path(found.step.folder) / REPORT
        with whole_file(file) as growing:
            growing.write_text(render_report(found), "utf-8")
        if found.metrics:  # else the store does not answer
            try:
                MlflowClient(found.step.tracking_uri).log_artifact(found.step.id, str(file))
            except (MlflowException, OSError) as error:
                raise UserError(
                    f"{file} is written, but the tracking store does not take it: {error}"
                ) from None
    return file


def _inside(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def main(argv: list[str]) -> Path:
    """Writes the report of the run that the command line names, and says where it is."""
    parser = argparse.ArgumentParser(
        prog="python -m dynamonet.report",
        description="Writes one HTML file that tells of a pretraining or fine-tuning run.",
    )
    parser.add_argument("run", help="folder of the run, or its MLflow run id")
    parser.add_argument("--runs", help="folder of results; default $DYNAMONET_RUNS, else ./runs")
    options = parser.parse_args(argv)
    file = write_report(options.run, StageSettings(runs=options.runs))
    Console().print(f"report   {file}", soft_wrap=True)
    return file


if __name__ == "__main__":
    run_entry(main)
