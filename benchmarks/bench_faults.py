"""Breaks a pretraining in many ways at random steps; compares its losses with an undisturbed one's.

make bench-faults            five random steps a fault; SEED=n draws others, MOMENTS=n takes more
                             or fewer, FAULTS=a,b only these
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.bench_resume import STEPS, command, losses, make_shards
from benchmarks.report import Figure, show, table

CHECKPOINT = 7  # steps between checkpoints, as in bench_resume
Driver = subprocess.Popen[str]


@dataclass(frozen=True)
class Fault:
    """One way to break a run."""

    act: Callable[[Driver, Path], None]
    status: int  # that the broken run ends with
    words: tuple[str, ...] = ()
    workers: int = 1


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


FAULTS = {
    "worker SIGKILL": Fault(kill_worker, 0),
    "one of two workers SIGKILL": Fault(
        kill_worker, 0, ("--num_workers", "2", "--cpus_per_worker", "1"), 2
    ),
    "driver SIGKILL": Fault(kill_driver, -signal.SIGKILL),
    "SIGTERM": Fault(send(signal.SIGTERM), 128 + signal.SIGTERM),
    "Ctrl-C": Fault(send(signal.SIGINT), 128 + signal.SIGINT),
    "checkpoint not writable": Fault(block_checkpoint, 1),
    "SIGKILL and a corrupt checkpoint": Fault(kill_and_corrupt, -signal.SIGKILL),
}


def broken(fault: Fault, step: int, words: list[str], runs: Path) -> int:
    """Starts a training, breaks it once it has told of a step, and returns its exit status."""
    driver = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert driver.stdout is not None
    for line in driver.stdout:
        told = re.match(r"step +(\d+)/", line)
        if told and int(told[1]) >= step:
            break
    fault.act(driver, runs)
    driver.communicate(timeout=600)
    return driver.returncode


def main() -> None:
    """Prints the table and the figures."""
    draw = random.Random(int(os.environ.get("SEED", "0")))
    moments = int(os.environ.get("MOMENTS", "5"))
    chosen = os.environ.get("FAULTS", ",".join(FAULTS)).split(",")
    title = f"Faults of a training of {STEPS} steps, a checkpoint every {CHECKPOINT}"
    made = table(title, "fault", "after steps", "exit status", "equal losses")
    equal = total = 0
    with tempfile.TemporaryDirectory(prefix="bench-faults-") as name:
        folder = Path(name)
        shards = make_shards(folder)
        whole: dict[int, dict[int, float]] = {}
        for fault_name in chosen:
            fault = FAULTS[fault_name]
            if fault.workers not in whole:
                runs = folder / f"whole-{fault.workers}"
                subprocess.run([*command(shards, runs), *fault.words], check=True)
                whole[fault.workers] = losses(runs)
            steps, found, statuses = [], [], []
            for number in range(moments):
                runs = folder / f"{len(list(folder.iterdir()))}-{number}"
                words = [*command(shards, runs), *fault.words]
                steps.append(draw.randrange(1, STEPS - CHECKPOINT))
                statuses.append(broken(fault, steps[-1], words, runs))
                if statuses[-1] != 0:  # else it went on by itself
                    subprocess.run(words, check=True)
                found.append(losses(runs) == whole[fault.workers])
            right = {fault.status} == set(statuses)
            equal, total = equal + sum(found) * right, total + moments
            made.add_row(
                fault_name,
                ", ".join(map(str, steps)),
                ", ".join(map(str, sorted(set(statuses)))),
                f"{sum(found)} of {moments}",
            )
            print(f"{fault_name}: {steps} {statuses} {found}", file=sys.stderr)
    show([made], [Figure("faults_survived_with_equal_losses", equal / max(1, total), 1.0)])


if __name__ == "__main__":
    main()
