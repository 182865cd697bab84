"""Kills a pretraining at random steps, starts it again, and compares its losses with a whole one's.

make bench-resume            five kills; SEED=n make bench-resume draws other steps
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from mlflow import MlflowClient

from benchmarks.report import Figure, show, table

KILLS, STEPS = 5, 40
TINY = (
    "--model.num_frames 8 --model.frame_px 32 --model.trunk.depth 10 --model.trunk.width 8 "
    "--model.trunk.stem_pool false --model.trunk.temporal_strides 1,2,2,1 --clips.canvas_px 32 "
    f"--loader.batch_size 8 --loader.processes 1 --clips.colour_jitter 0.2 --epochs 100 "
    f"--max_steps {STEPS} --checkpoint_every_steps 7 --log_every_steps 1 --precision fp32 "
    "--evaluate_every_steps 1000"
).split()


def command(shards: str, runs: Path) -> list[str]:
    words = ["--shards", shards, "--runs", str(runs), *TINY]
    return [sys.executable, "pretrain/run.py", *words]


def losses(runs: Path) -> dict[int, float]:
    """Returns the loss of each step that was logged; fails if one was logged twice."""
    client = MlflowClient(f"sqlite:///{runs}/mlflow.db")
    experiment = client.get_experiment_by_name("dynamonet")
    found = client.search_runs([experiment.experiment_id]) if experiment else []
    if not found:
        return {}
    history = client.get_metric_history(found[0].info.run_id, "train/loss")
    if len({m.step for m in history}) != len(history):
        raise RuntimeError(f"{runs}: a step was logged twice")
    return {m.step: m.value for m in history}


def kill_after(step: int, words: list[str]) -> None:
    """Starts a training and kills its driver once it has told of a step."""
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        told = re.match(r"step +(\d+)/", line)
        if told and int(told[1]) >= step:
            break
    family = psutil.Process(driver.pid).children(recursive=True)
    # Ray's two agents outlive a killed driver by a minute and do nothing
    family = [process for process in family if "Agent" not in " ".join(process.cmdline())]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(family, timeout=60)


def make_shards(folder: Path) -> str:
    from data_prep.shard import main as shard
    from demo.motion_videos import write_motion_videos
    from dynamonet import cluster

    write_motion_videos(folder / "videos", train_videos=63, test_videos=9)
    with cluster.connected():
        shard(
            f"--source {folder}/videos --output {folder}/set --runs {folder}/prep "
            "--min_seconds 0.5 --shard_mb 0.05".split()
        )
    return str(folder / "set")


def main() -> None:
    """Prints the table and the figures."""
    draw = random.Random(int(os.environ.get("SEED", "0")))
    made = table(f"Kills of a training of {STEPS} steps", "killed after step", "equal losses")
    equal = 0
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as name:
        folder = Path(name)
        shards = make_shards(folder)
        subprocess.run(command(shards, folder / "whole"), check=True)
        whole = losses(folder / "whole")
        for number in range(KILLS):
            runs = folder / f"killed-{number}"
            words = command(shards, runs)
            step = draw.randrange(1, STEPS - 1)
            kill_after(step, words)
            subprocess.run(words, check=True)
            found = losses(runs)
            same = sum(found.get(step) == loss for step, loss in whole.items())
            equal += found == whole
            made.add_row(str(step), f"{same} of {len(whole)}")
    show([made], [Figure("resumes_with_equal_losses", equal / KILLS, 1.0)])


if __name__ == "__main__":
    main()
