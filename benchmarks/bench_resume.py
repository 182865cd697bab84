"""Kills a pretraining at random steps, starts it again, and compares its losses with a whole one's.

make bench-resume            five kills; SEED=n make bench-resume draws other steps

Before that: which samples this reader and Megatron-Energon give after a stop at a random step, with
the ranks and loader processes of before and with others.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient
from rich.table import Table

from benchmarks import energon
from benchmarks.loaders import BATCH
from benchmarks.report import Figure, in_own_process, show, table
from dynamonet.shards.loading import batches
from dynamonet.shards.order import TrainingOrder
from dynamonet.shards.reader import ClipReader
from dynamonet.shards.settings import LoaderSettings
from dynamonet.shards.shard_set import ShardSet

KILLS, STEPS = 5, 60
LIMIT = 120  # seconds for another loader's answer
READ = 24  # global batches of which the samples are compared
TINY = (
    "--model.num_frames 8 --model.frame_px 32 --model.trunk.depth 10 --model.trunk.width 8 "
    "--model.trunk.stem_pool false --model.trunk.temporal_strides 1,2,2,1 --clips.canvas_px 32 "
    f"--loader.batch_size 8 --loader.processes 1 --clips.colour_jitter 0.2 --epochs 1000 "
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


def own_keys(path: str, first: int, ranks: int, processes: int) -> list[list[str]]:
    """Returns the keys of each global batch from a step on, as this reader gives them."""
    shards = ShardSet.open(path)
    reader = ClipReader(shards, num_frames=9, frame_px=32)
    plan = reader.plan(LoaderSettings(batch_size=BATCH), ranks, 0)
    found = [
        batches(
            reader,
            TrainingOrder(reader.rows, plan, rank, first, READ),
            processes=processes,
            prefetch=2,
        )
        for rank in range(ranks)
    ]
    return [
        [shards.index[row].key for part in parts for row in part.row.tolist()]
        for parts in zip(*found, strict=True)
    ]


def energon_keys(
    folder: Path, first: int, ranks: int, processes: int, states: list[Any]
) -> tuple[list[list[str]], list[Any]]:
    """Returns the same of Megatron-Energon, and each rank's state at half of the batches.

    Args:
        states: Of each rank, to begin with at step `first`; empty = from the beginning, and saved.
    """
    found: list[list[str]] = [[] for _ in range(READ - first)]
    saved = []
    micro = BATCH // 2  # one batch of each of two ranks, two of one
    if len(states) < ranks:  # what `energon checkpoint redist` does, from one rank to several
        states = [
            replace(state, worker_states=[worker], next_worker_id=0)
            for state in states
            for worker in state.worker_states
        ]
    for rank in range(ranks):
        loader = energon.loader(
            folder, ranks=ranks, rank=rank, processes=processes, batch_size=micro, decodes=False
        )
        if states:
            loader.restore_state_rank(states[rank])
        walk = iter(loader)
        for step, batch in enumerate(found, first):
            if not states and step == READ // 2:
                saved.append(loader.save_state_rank())
            for _ in range(2 // ranks):
                batch += next(walk)
    return found, saved


def samples_after_a_stop(
    path: str, folder: Path, draw: random.Random
) -> tuple[Table, list[Figure]]:
    """Compares what is read after a stop with what would have been read without it."""
    changes = {"the same": (1, 2), "1 process": (1, 1), "3 processes": (1, 3), "2 ranks": (2, 1)}
    made = table(f"Global batches after a stop, equal of those left of {READ}", "", *changes)
    whole = in_own_process(own_keys, path, 0, 1, 2)
    first = draw.randrange(1, READ - 1)
    counts = []
    for ranks, processes in changes.values():
        rest = in_own_process(own_keys, path, first, ranks, processes)
        counts.append(sum(a == b for a, b in zip(rest, whole[first:], strict=True)))
    made.add_row(f"this reader, at step {first}", *(f"{n} of {READ - first}" for n in counts))
    figures = [Figure("own_equal_batches", min(counts) / (READ - first), 1.0)]
    if find_spec("megatron"):
        home, half = energon.prepare(path, folder / "energon"), READ // 2
        cells, began = [], within(LIMIT, energon_keys, home, 0, 1, 2, [])
        for ranks, processes in changes.values():
            if isinstance(began, str):
                cells.append(began)
                continue
            whole, states = began
            rest = within(LIMIT, energon_keys, home, half, ranks, processes, states)
            if isinstance(rest, str):
                cells.append(f"refused: {rest}")
                continue
            pairs = zip(rest[0], whole[half:], strict=True)
            equal = sum(sorted(a) == sorted(b) for a, b in pairs)
            cells.append(f"{equal} of {READ - half}")
        made.add_row(f"Megatron-Energon, at step {half}", *cells)
    return made, figures


def within(seconds: float, function: Callable[..., Any], *arguments: Any) -> Any:
    """Runs a function in a process of its own; returns the name of its error, or that it hung."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    process = context.Process(target=_answer, args=(answers, function, arguments))
    process.start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return f"no answer in {seconds:g} s"
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for child in family:
            child.kill()


def _answer(answers: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        answers.put(function(*arguments))
    except Exception as error:  # assertions of its own, and errors of its processes
        answers.put(type(error).__name__)
    time.sleep(LIMIT)  # tensors among the answers are fetched from here; then it is killed


def make_shards(folder: Path, videos: int = 63) -> str:
    from data_prep.shard import main as shard
    from demo.motion_videos import write_motion_videos
    from dynamonet import cluster

    write_motion_videos(folder / "videos", train_videos=videos, test_videos=9)
    with cluster.connected():
        shard(
            f"--source {folder}/videos --output {folder}/set --runs {folder}/prep "
            "--min_seconds 0.5 --shard_mb 0.05".split()
        )
    return str(folder / "set")


def main() -> None:
    """Prints the table and the figures."""
    draw = random.Random(int(os.environ.get("SEED", "0")))
    columns = ("killed after step", "went on after step", "equal losses")
    made = table(f"Kills of a training of {STEPS} steps", *columns)
    equal = 0
    with tempfile.TemporaryDirectory(prefix="bench-resume-") as name:
        folder = Path(name)
        shards = make_shards(folder)
        read, figures = samples_after_a_stop(shards, folder, draw)
        subprocess.run(command(shards, folder / "whole"), check=True)
        whole = losses(folder / "whole")
        for number in range(KILLS):
            runs = folder / f"killed-{number}"
            words = command(shards, runs)
            step = draw.randrange(1, STEPS // 2)  # of the console, which lags behind the training
            kill_after(step, words)
            said = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout
            resumed = re.search(r"^resumed +after step (\d+)", said, re.MULTILINE)
            found = losses(runs)
            same = sum(found.get(step) == loss for step, loss in whole.items())
            equal += found == whole
            made.add_row(str(step), resumed[1] if resumed else "0", f"{same} of {len(whole)}")
    figures.append(Figure("resumes_with_equal_losses", equal / KILLS, 1.0))
    show([read, made], figures)


if __name__ == "__main__":
    main()
