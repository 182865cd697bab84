"""Stage 1 against kills, a full disk and damaged videos: the same bytes, and nothing lost.

make bench-prep-faults       20 faults of each kind, 300 damaged files; SEED=n draws others
FAULTS=disk                  one kind alone, of driver, worker and disk: each takes ten minutes

The full disk is a small tmpfs, which needs the right to mount; without it it is left out.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from rich.table import Table

from benchmarks.mutants import lost, render_formats, write_mutants
from benchmarks.report import Figure, show, table

TIMES = 20  # of each fault
MUTANTS = 300
TASKS = ("ray::encode", "ray::build", "ray::fingerprint", "ray::_compare", "ray::_strips")
SMALL = "--encode.short_side_px 64 --segment_seconds 2 --min_seconds 0.5 --shard_mb 0.1".split()
ROOM_MB = 64  # of the disk once it is not full any more


class Stage:
    """The command of stage 1 on one folder of videos, and an output."""

    def __init__(self, videos: Path, output: Path, *words: str) -> None:
        self.output = output
        script = [sys.executable, "data_prep/shard.py"]
        self.runs = output.parent / f"{output.name}-runs"
        self.words = [*script, "--source", str(videos), "--output", str(output)]
        self.words += ["--runs", str(self.runs), *SMALL, *words]

    def start(self) -> subprocess.Popen[str]:
        pipe = subprocess.PIPE
        return subprocess.Popen(self.words, stdout=subprocess.DEVNULL, stderr=pipe, text=True)

    def finish(self) -> None:
        subprocess.run(self.words, check=True, stdout=subprocess.DEVNULL)

    def begun(self) -> bool:
        return (self.output / "records").is_dir()

    def digests(self) -> dict[str, str]:
        """Returns the digest of every tar and table."""
        files = [*self.output.glob("*.tar"), *self.output.rglob("*.parquet")]
        return {f.name: hashlib.blake2b(f.read_bytes()).hexdigest() for f in sorted(files)}


def wait_until(true: Callable[[], object], driver: subprocess.Popen[str]) -> None:
    while not true() and driver.poll() is None:
        time.sleep(0.02)


def undisturbed(stage: Stage) -> float:
    """Runs stage 1; returns the seconds from its first output to its end."""
    driver = stage.start()
    wait_until(stage.begun, driver)
    began = time.monotonic()
    if driver.wait():
        raise RuntimeError(driver.stderr.read() if driver.stderr else "")
    return time.monotonic() - began


def kill_the_driver(stage: Stage, moment: float) -> str:
    """Kills the driver a while after its first output, and waits for its Ray to be gone."""
    driver = stage.start()
    wait_until(stage.begun, driver)
    time.sleep(moment)
    family = psutil.Process(driver.pid).children(recursive=True) if driver.poll() is None else []
    # Ray's two agents outlive a killed driver by a minute and do nothing
    family = [process for process in family if "Agent" not in " ".join(process.cmdline())]
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    psutil.wait_procs(family, timeout=60)
    return f"{len(list(stage.output.glob('*.tar')))} tars there"


def kill_a_worker(stage: Stage, moment: float) -> str:
    """Kills one process that works on a task; the run goes on by itself."""
    driver = stage.start()
    wait_until(stage.begun, driver)
    time.sleep(moment)
    victims: list[psutil.Process] = []

    def found() -> bool:
        for process in psutil.Process(driver.pid).children(recursive=True):
            try:
                if process.cmdline()[0].startswith(TASKS):
                    victims.append(process)
            except (psutil.Error, IndexError):
                continue
        return bool(victims)

    wait_until(found, driver)
    if victims:
        victims[0].kill()
    _, error = driver.communicate()
    if driver.returncode:
        return f"WRONG: status {driver.returncode}: {error.strip().splitlines()[-1:]}"
    return "a worker" if victims else "no worker left"


def fill_the_disk(stage: Stage, moment: float) -> str:
    """Lets the disk hold a share (`moment`) of the set only; then makes room."""
    mount = stage.output.parent
    size = int(moment * SET_BYTES[0])
    subprocess.run(["mount", "-o", f"remount,size={size}", mount], check=True)
    driver = stage.start()
    _, error = driver.communicate()
    subprocess.run(["mount", "-o", f"remount,size={ROOM_MB}m", mount], check=True)
    last = error.strip().splitlines()[-1] if error.strip() else "no error"
    if driver.returncode != 1 or "No space left" not in error or "ray::" in error:
        print(error, file=sys.stderr)
        return f"WRONG: status {driver.returncode}: {last}"
    return f"{len(list(stage.output.glob('*.tar')))} tars there"


SET_BYTES = [0]
KINDS = {"driver": kill_the_driver, "worker": kill_a_worker, "disk": fill_the_disk}


def may_mount(folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["mount", "-t", "tmpfs", "-o", f"size={ROOM_MB}m", "tmpfs", str(folder)]
    try:
        return subprocess.run(words, stderr=subprocess.DEVNULL).returncode == 0
    except FileNotFoundError:
        return False


def faults(folder: Path, draw: random.Random) -> tuple[Table, list[Figure]]:
    """Disturbs runs at random moments and compares what they end with."""
    from demo.motion_videos import write_motion_videos

    write_motion_videos(
        folder / "videos", train_videos=81, test_videos=9, num_frames=72, size_px=96
    )
    whole = Stage(folder / "videos", folder / "whole")
    seconds = undisturbed(whole)
    right = whole.digests()
    SET_BYTES[0] = sum(f.stat().st_size for f in whole.output.rglob("*") if f.is_file())
    made = table(
        f"Faults while a set of {len(right)} files is made", "fault", "when", "left", "same"
    )
    kinds = [KINDS[name] for name in os.environ.get("FAULTS", ",".join(KINDS)).split(",")]
    disk = folder / "disk"
    if fill_the_disk in kinds and not may_mount(disk):
        kinds.remove(fill_the_disk)
        print("left out: full disks, for want of the right to mount a tmpfs")
    same = total = 0
    try:
        for kind in kinds:
            for number in range(TIMES):
                full = kind is fill_the_disk
                home = disk if full else folder
                stage = Stage(folder / "videos", home / f"{kind.__name__}-{number}")
                latest = 0.6 if kind is kill_a_worker else 0.9  # then there are no tasks any more
                moment = draw.uniform(0.05, latest) * (1 if full else seconds)
                left = kind(stage, moment)
                stage.finish()
                equal = stage.digests() == right and "WRONG" not in left
                same, total = same + equal, total + 1
                when = f"{moment:.0%} of the room" if full else f"{moment:.1f} s"
                row = (kind.__name__.replace("_", " "), when, left, "yes" if equal else "NO")
                made.add_row(*row)
                print(*row, sep=", ", file=sys.stderr)
                for made_here in (stage.output, stage.runs):  # else the small disk fills up
                    shutil.rmtree(made_here)
    finally:
        subprocess.run(["umount", str(disk)], stderr=subprocess.DEVNULL)
    return made, [Figure("faults_with_equal_shards", same / max(1, total), 1.0)]


def mutants(folder: Path, seed: int) -> tuple[Table, list[Figure]]:
    """Feeds damaged files to stage 1 and looks for what is lost."""
    originals = render_formats(folder / "formats")
    videos = folder / "mutants"
    write_mutants(originals, videos, MUTANTS, seed=seed)
    stage = Stage(videos, folder / "mutants-set", "--limits.stall_seconds", "20")
    began = time.monotonic()
    status = subprocess.run(stage.words, stdout=subprocess.DEVNULL).returncode
    seconds = time.monotonic() - began
    rows = pq.read_table(stage.output / "index.parquet").to_pylist()
    quarantine = pq.read_table(stage.output / "quarantine.parquet").to_pylist()
    taken = {row["source"] for row in rows}
    reasons = {row["source"]: row["reason"] for row in quarantine}
    gone = lost(videos, stage.output)
    made = table(f"{MUTANTS} damaged files, in {seconds:.0f} s", "", "files")
    made.add_row("taken whole", str(len(taken - reasons.keys())))
    made.add_row("taken in part", str(len(taken & reasons.keys())))
    made.add_row("quarantined", str(len(reasons.keys() - taken)))
    made.add_row("of which frames are lost", str(len(gone)))
    made.caption = "\n".join(f"{name}: {what}" for name, what in gone.items()) or None
    children = ("crashed", "stood still", "took more", "Cannot allocate")
    hard = [reason for reason in reasons.values() if any(word in reason for word in children)]
    made.add_row("that crashed, hung or wanted too much memory", str(len(hard)))
    return made, [
        Figure("mutants_exit_status", status, 0, at_least=False),
        Figure("mutants_lost", len(gone), 0, at_least=False),
    ]


def main() -> None:
    """Prints the tables and the figures."""
    seed = int(os.environ.get("SEED", "0"))
    with tempfile.TemporaryDirectory(prefix="bench-prep-faults-") as name:
        parts = [mutants(Path(name), seed), faults(Path(name), random.Random(seed))]
    show([made for made, _ in parts], [f for _, figures in parts for f in figures])


if __name__ == "__main__":
    main()
