"""Breaks a pretraining in many ways at random steps; compares its losses with an undisturbed one's.

    make bench-faults            five random moments a fault; SEED=n draws others, MOMENTS=n takes
                                 more or fewer, FAULTS=a,b only these

Each row is saved to benchmarks/results/faults.json as it ends; those that are there are not run
again. Nodes are raylets on this machine, ended by their own handles.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from benchmarks.bench_resume import STEPS, command, losses, make_shards
from benchmarks.nodes import Broken, Nodes, drain, lose_and_gain, step_of, stop_job
from benchmarks.report import Figure, Kept, show, table

CHECKPOINT = 7  # steps between checkpoints, as in bench_resume
TOLERANCE = 1e-3  # relative, where workers change: the same clips added up in another order
Driver = subprocess.Popen[str]


@dataclass(frozen=True)
class Fault:
    """One way to break a run."""

    act: Callable[[Driver, Path], None]
    status: int  # that the broken run ends with
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodeFault:
    """One way to break a run on a cluster of its own."""

    act: Callable[[Nodes, int, list[str]], Broken]
    status: int
    words: tuple[str, ...]
    nodes: int  # of a core each


@dataclass(frozen=True)
class Row:
    """How one broken run ended."""

    step: int  # of the console, which lags behind the training
    status: int
    equal: int  # losses
    of: int


def family(driver: Driver) -> list[psutil.Process]:
    found = psutil.Process(driver.pid).children(recursive=True)
    # Ray's two agents outlive a killed driver by a minute and do nothing
    return [process for process in found if "Agent" not in " ".join(process.cmdline())]


def kill_driver(driver: Driver, runs: Path) -> None:
    members = family(driver)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(members, timeout=60)


def kill_worker(driver: Driver, runs: Path) -> None:
    workers = [p for p in family(driver) if "RayTrainWorker" in " ".join(p.cmdline())]
    workers[-1].kill()


def kill_and_corrupt(driver: Driver, runs: Path) -> None:
    """Kills the driver, and changes one byte of the newest checkpoint."""
    kill_driver(driver, runs)
    found = sorted(runs.glob("pretrain/*/step-*/model.safetensors"))
    if found:
        content = bytearray(found[-1].read_bytes())
        content[len(content) // 2] ^= 1
        found[-1].write_bytes(content)


def block_checkpoint(driver: Driver, runs: Path) -> None:
    """Puts a file where the next checkpoints would grow, until the run has ended."""
    (home,) = (runs / "pretrain").iterdir()
    blocks = [home / f".step-{n:08d}" for n in [*range(CHECKPOINT, STEPS, CHECKPOINT), STEPS]]
    for block in blocks:
        if not block.exists():
            block.write_text("in the way")
    driver.wait()
    for block in blocks:
        if block.is_file():
            block.unlink()


def send(number: signal.Signals) -> Callable[[Driver, Path], None]:
    return lambda driver, runs: driver.send_signal(number)


ONE_CORE = ("--cpus_per_worker", "1", "--loader.processes", "0")
# a batch that divides by two and three; parts of the same size on both
ELASTIC = (*ONE_CORE, *"--num_workers 3 --min_workers 2".split())
ELASTIC += ("--loader.batch_size", "12", "--micro_batch", "2")
DRAINED = (*ELASTIC, "--max_steps", "300")  # a node goes 20 s after it is told
GROWN = (*ELASTIC, "--max_steps", "900")  # Ray looks for room once a minute
FAULTS: dict[str, Fault | NodeFault] = {
    "worker SIGKILL": Fault(kill_worker, 0),
    "one of two workers SIGKILL": Fault(kill_worker, 0, ("--num_workers", "2", *ONE_CORE)),
    "driver SIGKILL": Fault(kill_driver, -signal.SIGKILL),
    "SIGTERM": Fault(send(signal.SIGTERM), 128 + signal.SIGTERM),
    "Ctrl-C": Fault(send(signal.SIGINT), 128 + signal.SIGINT),
    "checkpoint not writable": Fault(block_checkpoint, 1),
    "SIGKILL and a corrupt checkpoint": Fault(kill_and_corrupt, -signal.SIGKILL),
    "ray job stop": NodeFault(stop_job, 1, ONE_CORE, nodes=1),
    "a node drained": NodeFault(drain, 0, DRAINED, nodes=3),
    "a node lost and one gained": NodeFault(lose_and_gain, 0, GROWN, nodes=3),
}


def broken(fault: Fault, step: int, words: list[str], runs: Path) -> Broken:
    """Starts a training, breaks it once it has told of a step, and waits for its end."""
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        if step_of(line) >= step:
            break
    fault.act(driver, runs)
    driver.communicate(timeout=600)
    return Broken(driver.returncode)


def measure(name: str, number: int, folder: Path, shards: str) -> Row:
    """Breaks one run, lets it go on, and compares it with one that nothing broke."""
    fault, seed = FAULTS[name], os.environ.get("SEED", "0")
    step = random.Random(f"{seed} {name} {number}").randrange(1, STEPS - CHECKPOINT)
    runs = folder / f"{name.replace(' ', '-')}-{number}"
    words = [*command(shards, runs), *fault.words]
    if isinstance(fault, NodeFault):
        with Nodes.started(fault.nodes) as nodes:
            ended = fault.act(nodes, step, words)
    else:
        ended = broken(fault, step, words, runs)
    if ended.status != 0:  # else it went on by itself
        subprocess.run(words, check=True)
    found, whole = losses(runs), undisturbed(fault, folder, shards)
    last = len(whole) if ended.comparable is None else ended.comparable
    rtol = 0.0 if ended.comparable is None else TOLERANCE
    compared = {step: loss for step, loss in whole.items() if step <= last}
    equal = sum(
        bool(np.isclose(found.get(step, np.nan), loss, rtol, 0)) for step, loss in compared.items()
    )
    return Row(step, ended.status, equal, len(compared))


def undisturbed(fault: Fault | NodeFault, folder: Path, shards: str) -> dict[int, float]:
    """Returns the losses of a run of a fault's settings that nothing breaks."""
    runs = folder / "-".join(["whole", *(word.strip("-") for word in fault.words)])
    words = [*command(shards, runs), *fault.words]
    if not runs.exists() and isinstance(fault, NodeFault):
        with Nodes.started(fault.nodes) as nodes:
            print(*nodes.lines(words))
    elif not runs.exists():
        subprocess.run(words, check=True)
    return losses(runs)


def main() -> None:
    """Prints the table and the figures."""
    moments = int(os.environ.get("MOMENTS", "5"))
    chosen = os.environ.get("FAULTS", ",".join(FAULTS)).split(",")
    kept = Kept("faults")
    title = f"Faults of a training of {STEPS} steps or more, a checkpoint every {CHECKPOINT}"
    made = table(title, "fault", "after steps", "exit status", "equal losses")
    survived = total = 0
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as name:
        folder = Path(name)
        shards = make_shards(folder)
        for fault in chosen:
            found = []
            for number in range(moments):
                row = partial(measure, fault, number, folder, shards)
                found.append(Row(**kept(f"{fault} {number}", lambda row=row: asdict(row()))))
            whole = [row.equal == row.of and row.status == FAULTS[fault].status for row in found]
            survived, total = survived + sum(whole), total + len(found)
            steps = ", ".join(str(row.step) for row in found)
            statuses = ", ".join(str(status) for status in sorted({row.status for row in found}))
            made.add_row(fault, steps, statuses, f"{sum(whole)} of {len(found)}")
    show([made], [Figure("faults_survived_with_equal_losses", survived / max(1, total), 1.0)])


if __name__ == "__main__":
    main()
