"""What a training says of its own speed."""

from __future__ import annotations

import gzip
import io
import json
import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from torch import nn

from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.stage import StageSettings
from dynamonet.training.logs.buffered import BufferedLogger
from dynamonet.training.logs.console import (
    ConsoleHandler,
    ConsoleLog,
    StepLine,
    duration,
    note_lines,
    step_text,
)
from dynamonet.training.perf.advice import PerfContext, advise
from dynamonet.training.perf.monitor import PerfMonitor
from dynamonet.training.perf.profiler import ARTIFACT, traced
from dynamonet.training.perf.throughput import (
    Capacity,
    count_flops,
    measure_capacity,
    speed_metrics,
)
from dynamonet.training.perf.timer import OTHER_PARTS, STEP_PARTS, Stopwatch
from tests.conftest import tracked

CPU = torch.device("cpu")
USUAL = {"wait": 0.01, "copy": 0.05, "forward": 0.35, "backward": 0.5, "optimiser": 0.05}
HERE = PerfContext(
    device_type="cpu",
    precision="bf16",
    fastest="bf16",
    compiled=False,
    processes=1,
    threads=2,
    batch_size=8,
    canvas_px=128,
    log_every_steps=10,
    checkpoint_every_steps=200,
)
GPU = replace(HERE, device_type="cuda", processes=4, threads=16, compiled=True)


def split(**seconds: float) -> dict[str, float]:
    return dict.fromkeys(STEP_PARTS + OTHER_PARTS, 0.0) | USUAL | seconds


def test_all_time_between_two_laps_belongs_to_a_part() -> None:
    watch, before = Stopwatch(CPU), time.perf_counter()
    for part in ("wait", "forward", "wait"):
        sum(range(20_000))
        watch.lap(part)
    found, whole = watch.read(), time.perf_counter() - before
    assert found["wait"] > 0 and found["forward"] > 0 and found["copy"] == 0
    assert found.keys() == {*STEP_PARTS, *OTHER_PARTS}
    assert sum(found.values()) <= whole
    assert sum(watch.read().values()) == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_cuda_the_device_is_timed_and_not_the_calls_to_it() -> None:
    device = torch.device("cuda")
    matrix = torch.randn(4096, 4096, device=device)
    watch = Stopwatch(device)
    before = time.perf_counter()
    for _ in range(50):
        matrix = matrix @ matrix * 0.01
    watch.lap("forward")
    called = time.perf_counter() - before
    assert watch.read()["forward"] > called


def test_the_arithmetic_of_convolutions_and_products_is_counted() -> None:
    model = nn.Sequential(
        nn.Conv3d(3, 8, 3, padding=1),
        nn.Conv3d(8, 8, 3, padding=1, groups=4),
        nn.Flatten(),
        nn.Linear(8 * 4 * 6 * 6, 10),
    )
    pixels = 4 * 6 * 6
    expected = 2 * (pixels * 27 * 3 * 8 + pixels * 27 * 2 * 8 + 8 * pixels * 10)
    assert count_flops(model, torch.randn(1, 3, 4, 6, 6)) == expected
    assert model.training


def test_counting_leaves_a_network_as_it_was() -> None:
    trunk = TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1))
    model = DynamoNet(ModelConfig(num_frames=8, frame_px=32, trunk=trunk))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    capacity = measure_capacity(model, torch.zeros(2, 3, 8, 32, 32), torch.float32)
    assert capacity.flops_per_clip > 0 and capacity.peak > 0
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_metrics_of_a_window() -> None:
    found = speed_metrics(
        split(wait=0.05, evaluation=7.0),
        steps=10,
        clips=80,
        num_ranks=2,
        capacity=Capacity(flops_per_clip=1e9, peak=1e12),
    )
    assert found["train/clips_per_second"] == pytest.approx(160)  # evaluation does not count
    assert found["train/data_wait_share"] == pytest.approx(0.05)
    assert found["train/mfu"] == pytest.approx(0.08)
    assert found["time/backward_ms"] == pytest.approx(50)
    assert found["time/evaluation_s"] == 7 and "time/checkpoint_s" not in found


@pytest.mark.parametrize(
    ("seconds", "about", "expected"),
    [
        (split(wait=1.0), replace(HERE, processes=0), "set loader.processes to 1 or more"),
        (split(wait=1.0), replace(HERE, processes=2), "raise cpus_per_worker"),
        (split(wait=1.0), GPU, "51% of the time is spent waiting for clips: raise loader.proc"),
        (split(copy=0.5), GPU, "lower model.frame_px"),
        (split(optimiser=1.0), GPU, "raise loader.batch_size (now 8)"),
        (split(logging=0.2), HERE, "raise log_every_steps (now 10)"),
        (split(evaluation=1.0), HERE, "raise evaluate_every_steps"),
        (split(checkpoint=1.0), HERE, "raise checkpoint_every_steps (now 200)"),
        (split(wait=0.3, logging=0.3), HERE, "log_every_steps"),  # the further beyond its limit
        (split(), replace(GPU, precision="fp32"), "set precision to auto, bf16 is faster here"),
        (split(), replace(GPU, compiled=False), "set compile to on"),
        (split(), GPU, "raise loader.batch_size"),
        (split(), HERE, "89% of the time is the network's arithmetic, at 10% of the peak"),
    ],
)
def test_the_bottleneck_is_named_with_the_setting_to_change(
    seconds: dict[str, float], about: PerfContext, expected: str
) -> None:
    advice = advise(seconds, 0.1, about)
    assert expected in advice and "\n" not in advice


def test_a_training_that_keeps_its_device_busy_is_left_alone() -> None:
    assert "nothing holds it up" in advise(split(), 0.6, GPU)


class Scripted(Stopwatch):
    """Gives the readings that it was made with."""

    def __init__(self, *readings: dict[str, float]) -> None:
        super().__init__(CPU)
        self.readings = list(readings)

    def read(self) -> dict[str, float]:
        return self.readings.pop(0)


def test_advice_comes_after_a_hundred_steps_without_the_first_window() -> None:
    slow_start = split(wait=100.0)
    perf = PerfMonitor(Scripted(slow_start, split(), split()), Capacity(1e9, 1e12), num_ranks=1)
    perf.close(50, 400)
    assert not perf.can_advise(last=False)
    perf.close(50, 400)
    assert perf.can_advise(last=False) and "arithmetic" in perf.advice(HERE)


def test_a_short_training_gets_its_advice_at_the_last_step() -> None:
    perf = PerfMonitor(Scripted(split(wait=9.0)), Capacity(1e9, 1e12), num_ranks=1)
    perf.close(3, 24)
    assert perf.can_advise(last=True) and "waiting for clips" in perf.advice(HERE)


def test_the_step_line_has_what_matters_and_leaves_out_what_is_not_known() -> None:
    metrics = {"train/loss": 0.5, "train/skill": 0.25, "train/clips_per_second": 12.0}
    metrics |= {"train/data_wait_share": 0.034, "train/mfu": 0.41, "time/wait_ms": 3.0}
    text = step_text(20, 1500, metrics, 75)
    assert text == (
        "step      20/1,500  loss 0.5  skill 0.250  12.0 clips/s  waiting 3%  MFU 41%  "
        "1 min 15 s left"
    )
    assert step_text(20, 1500, {"train/loss": 2.0}, None) == "step      20/1,500  loss 2"


def test_durations_are_read_at_a_glance() -> None:
    shown = [duration(seconds) for seconds in (0.2, 59.4, 60, 3700, 200_000)]
    assert shown == ["0 s", "59 s", "1 min 0 s", "1 h 1 min", "2 d 7 h"]


def test_an_evaluation_is_told_in_a_line_for_each_group() -> None:
    lines = note_lines(200, {"val/loss": 0.25, "val/skill": 0.5, "probe/top1": 0.75})
    assert lines == [
        "step     200  val    loss 0.25  skill 0.5",
        "step     200  probe  top1 0.75",
    ]


def test_on_a_terminal_the_line_stays_in_place_and_elsewhere_each_is_printed() -> None:
    shown = {}
    for terminal in (True, False):
        out = io.StringIO()
        line = StepLine(Console(file=out, force_terminal=terminal, width=100))
        with line.shown():
            for step in (1, 2, 3):
                line.show(step, 3, {"train/loss": float(step)})
        shown[terminal] = out.getvalue()
    assert shown[False].count("\n") == 3 and "\x1b" not in shown[False]
    assert "\x1b[2K" in shown[True] and shown[True].count("\n") < 3  # the same line again


def test_a_trace_of_a_few_steps_becomes_an_artifact(tmp_path: Path) -> None:
    run = tracked("pretrain", tmp_path / "traced", StageSettings())
    for steps in (3, 8):  # fewer than are wanted, and more
        tracking = BufferedLogger(run, tmp_path)
        with tracking, traced(tracking, CPU, wanted=True) as step_traced:
            for _ in range(steps):
                torch.mm(torch.ones(8, 8), torch.ones(8, 8))
                step_traced()
        file = MlflowClient(run.uri).download_artifacts(run.run_id, ARTIFACT, str(tmp_path))
        events = json.loads(gzip.decompress(Path(file).read_bytes()))["traceEvents"]
        assert any(event["name"] == "aten::mm" for event in events), steps
    with traced(tracking, CPU, wanted=False) as step_traced:
        step_traced()


class Unending:
    """A queue in which a message stands whenever one looks."""

    def get(self, timeout: float) -> tuple[str, logging.LogRecord]:
        return "log", logging.makeLogRecord({"msg": "step"})


def test_the_driver_gets_its_turn_while_messages_keep_coming() -> None:
    log = ConsoleLog.__new__(ConsoleLog)
    log.console, log.queue = Console(file=io.StringIO()), Unending()  # type: ignore[assignment]
    log.handler = ConsoleHandler(log.console)
    log.follow(0.05)
    printed = log.console.file.getvalue()  # type: ignore[attr-defined]
    assert printed.count("step\n") > 1
