"""One HTML file that tells of a run: `python -m dynamonet.report RUN`

Curves, pictures, test results, lineage, shards, settings; it opens anywhere, offline. Training
writes it at its end; the command writes it at any time, of a run that goes on or failed too.
"""

from __future__ import annotations

import time
from pathlib import Path

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from dynamonet.errors import UserError
from dynamonet.html import data_uri, render
from dynamonet.report.contents import ReportContents, gather
from dynamonet.report.curves import draw_charts
from dynamonet.stage import Places
from dynamonet.storage import atomic_file
from dynamonet.tracking.origin import utc
from dynamonet.tracking.store import answering_soon

REPORT = "report.html"
# what stands at the top, where a run has it
HEADLINE = {
    "test/top1": ("top-1", "{:.1%}"),
    "test/top5": ("top-5", "{:.1%}"),
    "val/top1": ("top-1 on the validation part", "{:.1%}"),
    "val/skill": ("skill on held-out videos", "{:.3f}"),
    "val/skill_upper_bound": ("skill of the best shared filters", "{:.3f}"),
    "probe/top1": ("frozen, by ridge regression", "{:.1%}"),
    "train/clips_per_second": ("clips a second", "{:.1f}"),
    "train/mfu": ("of the device's peak (MFU)", "{:.0%}"),
    "run/minutes": ("minutes of training", "{:.1f}"),
    "run/parameters": ("parameters", "{:,.0f}"),
}


def render_report(found: ReportContents) -> str:
    """Returns the page; every text in it is escaped, every picture inside it."""
    last = found.last
    return render(
        "dynamonet.report",
        "page.html.j2",
        found=found,
        made=utc(time.time()),
        headline=[
            (name, form.format(last[key])) for key, (name, form) in HEADLINE.items() if key in last
        ],
        tests=[(k.removeprefix("test/"), f"{v:.4g}") for k, v in last.items() if k[:5] == "test/"],
        charts=[
            (chart, data_uri("image/svg+xml", svg.encode()))
            for chart, svg in draw_charts(found.metrics)
        ],
        pictures=[(name, data_uri("image/png", png)) for name, png in found.pictures.items()],
    )


def write_report(place: str, here: Places) -> Path:
    """Writes a run's report into its folder and among its artifacts; returns the file.

    Args:
        place: Folder of a run, or an MLflow run id.
        here: Where runs and shards are.

    Raises:
        UserError: that is no run of a training, or its folder cannot be written.
    """
    with answering_soon():
        contents = gather(place, here)
        file = Path(contents.step.folder) / REPORT
        with atomic_file(file) as growing:
            growing.write_text(render_report(contents), "utf-8")
        if contents.metrics:  # else the store does not answer
            try:
                MlflowClient(contents.step.tracking_uri).log_artifact(contents.step.id, str(file))
            except (MlflowException, OSError) as error:
                raise UserError(
                    f"{file} is written, but the tracking store rejected it: {error}"
                ) from None
    return file
