"""What taking fewer clips at once, and computing activations twice, save of a training's memory.

make bench-memory       the default network, 16 clips a step, a few steps of the loop on the CPU
"""

from __future__ import annotations

import json
import queue
import statistics
import tempfile
import time
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from benchmarks.alone import Untracked, training_alone
from benchmarks.bench_resume import make_shards
from benchmarks.report import Figure, in_own_process, show, table

CLIPS, STEPS = 16, 4
WAYS = {
    "all clips at once": "",
    "4 at once (micro_batch)": "--micro_batch 4",
    "activation_checkpointing": "--activation_checkpointing true",
    "both": "--micro_batch 4 --activation_checkpointing true",
}


def training(shards: str, home: str, words: str) -> tuple[int, float]:
    """Returns the most bytes of tensors that a step makes and holds, and the seconds of a step."""
    from dynamonet.command_line import load
    from pretrain.objective import Pretraining
    from pretrain.settings import PretrainSettings

    common = f"--loader.batch_size {CLIPS} --max_steps {STEPS} --epochs 1000 --loader.processes 0"
    settings = load(PretrainSettings, [*common.split(), *words.split()], prog="")
    messages: queue.Queue[object] = queue.Queue()
    task = Pretraining(settings, (shards,))
    trainer = training_alone(task, Untracked(), Path(home), messages, threads=2)
    seconds, most = [], 0
    for step, batch in trainer._batches():
        began = time.perf_counter()
        if step < STEPS - 1:
            trainer.train_step.apply(trainer.train_step.gradients(step, batch))
            seconds.append(time.perf_counter() - began)
            continue
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            trainer.train_step.apply(trainer.train_step.gradients(step, batch))
        trace = Path(home) / "trace.json"
        profiler.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
        held = [e["args"]["Total Allocated"] for e in events if e["name"] == "[memory]"]
        most = max(held) - held[0]
    return most, statistics.median(seconds)


def main() -> None:
    """Prints the table and the figures."""
    title = f"{CLIPS} clips a step of the default network"
    made, figures = table(title, "", "GB for a step", "by all at once", "time of a step"), []
    with tempfile.TemporaryDirectory(prefix="bench-memory-") as name:
        shards = make_shards(Path(name))
        base: tuple[int, float] | None = None
        for number, (way, words) in enumerate(WAYS.items()):
            home = Path(name) / str(number)
            home.mkdir()
            most, seconds = in_own_process(training, shards, str(home), words)
            base = base or (most, seconds)
            share = most / base[0]
            cells = f"{most / 1e9:.2f}", f"{share:.2f}", f"{seconds / base[1]:.2f}"
            made.add_row(way, *cells)
            if words:
                key = way.split(" (")[0].replace(" ", "_")
                figures.append(Figure(f"memory_{key}", share, 0.75, at_least=False))
    show([made], figures)


if __name__ == "__main__":
    main()
