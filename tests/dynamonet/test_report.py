"""The report of a run and MLflow's own pages, as a browser shows them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from mlflow import MlflowClient

from data_prep.shard import main as shard
from dynamonet import __version__
from dynamonet.errors import UserError
from dynamonet.report import __main__ as report
from dynamonet.report.curves import POINTS, Chart, draw, draw_charts, thinned
from dynamonet.stage import StageSettings
from finetune import run as finetuning
from pretrain import run as pretraining
from tests.conftest import BROWSER, TINY_MODEL, without_ray

pytestmark = pytest.mark.timeout(600)  # three stages, a browser and a server
CLIPS = "--clips.canvas_px 32 --loader.batch_size 4 --loader.processes 0 --precision fp32".split()
HOSTILE = "<img src=x onerror=alert(1)>"  # as a shard set may be called


class Made(NamedTuple):
    """Results folder with three linked runs."""

    runs: Path
    pretrained: Path
    tuned: Path
    shards: Path


@pytest.fixture(scope="module")
def made(video_folder: Path, cluster: None, tmp_path_factory: pytest.TempPathFactory) -> Made:
    root = tmp_path_factory.mktemp("told")
    runs = ["--runs", f"{root}/runs"]
    words = f"--source {video_folder} --dataset folder --output {root}/set --min_seconds 0.5"
    shard([*words.split(), "--encode.short_side_px", "32", "--test_share", "0.4", *runs])
    shards = ["--shards", f"{root}/set"]
    steps = "--max_steps 4 --evaluate_every_steps 2 --log_every_steps 1 --holdout_share 0.3".split()
    probe = ["--probe.shards", f"{root}/set", "--name", "a-run", "--precision", "fp32"]
    with without_ray():
        done = pretraining.main([*shards, *TINY_MODEL, *steps, *probe, *runs])
        tune = ["--recipe", "full", "--max_steps", "2", "--name", "tuned"]
        finetuning.main([*shards, *CLIPS, *tune, *runs])
    return Made(root / "runs", done.folder, root / "runs/finetune/tuned", root / "set")


def shown(address: str, *, wait_ms: int = 5000) -> str:
    """Returns a page as the browser has it once its scripts have run."""
    assert BROWSER
    words = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    words += [f"--virtual-time-budget={wait_ms}", address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plain(page: str) -> str:
    """Returns the text of a page."""
    page = re.sub(r"<(script|style)\b.*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", page))


@pytest.mark.browser
def test_a_browser_shows_curves_pictures_settings_lineage_and_shards(made: Made) -> None:
    file = made.pretrained / "report.html"  # written by the training itself
    page = shown(file.as_uri())
    text, card = plain(page), json.loads((made.shards / "card.json").read_text())
    state = json.loads((made.pretrained / "run.json").read_text())
    for word in (
        f"pretrain {made.pretrained.name}",
        "skill on held-out videos",
        "frozen, by ridge regression",
        "Speed:",
        "panel/filmstrip-00000004.png",
        "panel/learning-00000004.png",
        "probe/top1",
        state["mlflow"]["run_id"],
        card["run"]["id"],
        card["digest"],
        "data_prep set",
        "videos taken",
        "2: left, right",
        f"code {__version__}",
        "evaluate_every_steps: 2",
    ):
        assert word in text, word
    assert "filmstrip-00000002" not in text  # the last pictures only
    alternatives = set(re.findall(r'<img alt="([^"]+)"', page))
    titles = {"Loss", "Skill", "Probe", "Spread of features", "Learning rate", "Clips a second"}
    assert {f"curves: {title}" for title in titles} <= alternatives


@pytest.mark.browser
def test_every_picture_is_drawn_and_nothing_is_fetched(made: Made, tmp_path: Path) -> None:
    page = (made.pretrained / "report.html").read_text("utf-8")
    assert not re.search(r'(src|href)="(?!data:|#)', page) and "http://" not in plain(page)
    counting = (
        "<script>onload = () => document.title = 'drawn ' + [...document.images].filter("
        "i => i.complete && i.naturalWidth > 50).length + ' of ' + document.images.length</script>"
    )
    (tmp_path / "counted.html").write_text(page.replace("</body>", f"{counting}</body>"))
    counted = re.search(r"<title>drawn (\d+) of (\d+)", shown((tmp_path / "counted.html").as_uri()))
    assert counted and counted[1] == counted[2] and int(counted[1]) >= 12


@pytest.mark.browser
def test_a_fine_tuning_shows_its_test_results_and_both_parents(made: Made) -> None:
    text = plain(shown((made.tuned / "report.html").as_uri()))
    for word in ("top-1", "class_mean", "Accuracy of each class", "test/confusion.png"):
        assert word in text, word
    assert text.index("pretrain a-run") < text.index("data_prep set")


@pytest.mark.browser
def test_text_from_outside_is_shown_and_not_run(made: Made, tmp_path: Path) -> None:
    copy = tmp_path / "runs/pretrain/copy"
    shutil.copytree(made.pretrained, copy)
    (copy / "settings.yaml").write_text(f"name: {HOSTILE}\n<script>document.title='ran'</script>")
    file = report.main([str(copy), "--runs", str(made.runs)])
    page = shown(file.as_uri())
    assert HOSTILE not in page and "&lt;img src=x onerror" in page
    assert "<title>ran" not in page


def test_the_command_writes_a_report_again_and_keeps_it_as_an_artifact(made: Made) -> None:
    state = json.loads((made.pretrained / "run.json").read_text())["mlflow"]
    (made.pretrained / "report.html").unlink()
    file = report.main([state["run_id"], "--runs", str(made.runs)])
    assert file == made.pretrained / "report.html"
    items = MlflowClient(state["uri"]).list_artifacts(state["run_id"])
    assert "report.html" in {item.path for item in items}


def test_without_a_tracking_store_the_report_says_what_is_missing(
    made: Made, tmp_path: Path
) -> None:
    copy = tmp_path / "runs/pretrain/copy"
    shutil.copytree(made.pretrained, copy)
    state = json.loads((copy / "run.json").read_text())
    for record in (state["mlflow"], state["origin"]):
        record["uri"] = record["tracking_uri"] = f"sqlite:///{tmp_path}/gone.db"
    (copy / "run.json").write_text(json.dumps(state))
    shutil.rmtree(copy / "model")
    page = report.main([str(copy)]).read_text("utf-8")
    assert "no curves and pictures" in page and "gone.db" in page
    assert "evaluate_every_steps: 2" in page and 'id="curves"' not in page
    assert not (tmp_path / "gone.db").exists()


def test_what_is_no_run_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nothing to trace"):
        report.main([str(tmp_path)])
    with pytest.raises(UserError, match=r"no run of a training. Expected the folder"):
        report.write_report(str(made.shards), StageSettings(runs=str(made.runs)))


def test_long_curves_are_averaged_and_gaps_left_out() -> None:
    history = [(step, float(step % 2)) for step in range(10 * POINTS)]
    steps, values = thinned([*history, (10 * POINTS, float("nan"))])
    assert len(steps) == POINTS and values == pytest.approx([0.5] * POINTS)
    assert len(thinned([(1, float("inf"))])[0]) == 0
    assert "<svg" in draw(Chart("Loss", ".*"), {"train/loss": [(1, float("nan"))]})


def test_related_metrics_share_a_chart_and_absent_ones_have_none() -> None:
    some = [(1, 1.0), (2, 2.0)]
    charts = draw_charts({"train/loss": some, "val/loss": some, "time/wait_ms": some})
    assert [chart.title for chart, _ in charts] == [
        "Loss",
        "Loss of the prediction",
        "Where a step's time goes, ms",
    ]


@pytest.fixture
def pages(made: Made) -> Iterator[str]:
    """The address of MLflow's pages on these runs."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-m", "mlflow", "ui", "--backend-store-uri", f"sqlite:///{made.runs}/mlflow.db"]
    words += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    server = subprocess.Popen(
        [sys.executable, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 240
    try:
        while True:
            assert server.poll() is None and time.monotonic() < deadline
            try:
                with urllib.request.urlopen(f"{address}/health", timeout=5):
                    break
            except OSError:
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        server.wait(30)


@pytest.mark.browser
def test_mlflows_pages_show_the_three_linked_runs_and_their_pictures(
    made: Made, pages: str
) -> None:
    state = json.loads((made.tuned / "run.json").read_text())["mlflow"]
    place = f"{pages}/#/experiments/{state['experiment_id']}"
    listed = plain(shown(f"{place}/runs", wait_ms=30_000))
    for name in ("data_prep set", "pretrain a-run", "finetune tuned"):
        assert name in listed, name
    tuned = shown(f"{place}/runs/{state['run_id']}", wait_ms=30_000)
    before = json.loads((made.pretrained / "run.json").read_text())["mlflow"]
    card = json.loads((made.shards / "card.json").read_text())
    for parent, name in (
        (before["run_id"], "pretrain a-run"),
        (card["run"]["id"], "data_prep set"),
    ):
        assert re.search(rf'<a [^>]*href="[^"]*/runs/{parent}"[^>]*>{name}', tuned), name
    assert "test/top1" in tuned
    artifacts = f"{place}/runs/{before['run_id']}/artifacts/panel/filmstrip-00000004.png"
    page = shown(artifacts, wait_ms=30_000)
    assert "learning-00000004.png" in page and "report.html" in page
    assert re.search(r'src="blob:http://127[^"]*"', page), "the picture is not shown"
