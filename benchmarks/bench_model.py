"""The network's training step: against torchvision's, against the machine, and part by part.

On 4 clips of 16 x 112 x 112, forward + backward + SGD step, on the CPU's threads; and two smaller
sizes, which two cores train in minutes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models.video import r3d_18

from benchmarks.rates import conv_rate, matmul_rate
from benchmarks.report import Figure, in_own_process, interleaved, peak_bytes, ratio, show, table
from dynamonet.model.config import FilterConfig, ModelConfig, NetworkConfig
from dynamonet.model.filtering import apply_filters
from dynamonet.model.network import DynamoNet
from dynamonet.model.prediction import pair_frames, predict_levels, prediction_loss
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.precision import Precision, choose_precision
from dynamonet.training.perf.allocator import keep_freed_memory
from pretrain.movers import paste_movers
from pretrain.settings import PretrainSettings

CLIPS, FRAMES, SIDE = 4, 16, 112
CPU = Rank(0, 1, torch.device("cpu"))
KINDS = {
    "grid": FilterConfig(cell_px=8),
    "shared": FilterConfig(kind="shared", normalisation="linear", levels=(1,)),
}


def sizes() -> dict[str, tuple[int, NetworkConfig]]:
    """Returns clips of a step, and the network that sees them."""
    found: dict[str, tuple[int, NetworkConfig]] = {}
    tiny = PretrainSettings.from_config("tiny").model
    for num, side in ((8, 48), (16, 64)):
        name = f"{num}x{side}"
        small = tiny.model_copy(update={"num_frames": num, "frame_px": side})
        for kernel in ((7, 7, 7), (3, 7, 7)):
            trunk = small.trunk.model_copy(update={"stem_kernel": kernel})
            own = f"{name}_stem_{'x'.join(map(str, kernel))}"
            found[own] = 32, small.model_copy(update={"trunk": trunk})
    return found | {"default": (16, NetworkConfig())}


def frames(clips: int = CLIPS, num: int = FRAMES, side: int = SIDE) -> Tensor:
    """Returns clips and the frame after each: (B, 3, T + 1, H, W), channels last."""
    drawn = torch.randn(clips, 3, num + 1, side, side, generator=torch.Generator())
    return drawn.contiguous(memory_format=torch.channels_last_3d)


def tuned(
    model: nn.Module, data: Tensor | None = None, wanted: str = "auto"
) -> tuple[nn.Module, Precision]:
    """Returns a model laid out as the trainer does it, with the precision that it chooses.

    Args:
        data: What it is to be run on, see `frames`.
    """
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    clip = (frames() if data is None else data)[:, :, :-1]
    return model, choose_precision(model, clip, wanted, CPU)


def network(kind: str, side: int = 5) -> DynamoNet:
    filters = KINDS[kind].model_copy(update={"size": side})
    return DynamoNet(ModelConfig(filters=filters))


def stepper(model: nn.Module, loss: Callable[[], Tensor]) -> Callable[[], None]:
    """Returns a function that takes one training step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return step


def plain_step() -> Callable[[], None]:
    """torchvision's network as its documentation uses it."""
    model, clip = r3d_18(num_classes=400), frames()[:, :, :FRAMES].contiguous()
    return stepper(model, lambda: F.cross_entropy(model(clip), torch.zeros(CLIPS).long()))


def tuned_plain_step() -> Callable[[], None]:
    """torchvision's network in the trainer's layout and precision."""
    model, precision = tuned(r3d_18(num_classes=400))
    clip = frames()[:, :, :FRAMES]

    def loss() -> Tensor:
        with precision.autocast():
            return F.cross_entropy(model(clip).float(), torch.zeros(CLIPS).long())

    return stepper(model, loss)


def full_step(
    model: DynamoNet, precision: Precision, data: Tensor | None = None
) -> Callable[[], None]:
    """The whole network, predicting frames."""
    data = frames() if data is None else data

    def loss() -> Tensor:
        with precision.autocast():
            output = model(data[:, :, :-1])
        config = model.config
        pairs = pair_frames(data, output.predicted, config.filters.levels, config.targets)
        return prediction_loss(pairs, "mse")

    return stepper(model, loss)


def trunk_step(model: DynamoNet, precision: Precision) -> Callable[[], None]:
    """The trunk alone."""
    data = frames()

    def loss() -> Tensor:
        with precision.autocast():
            return model.trunk(data[:, :, :FRAMES]).float().square().mean()

    return stepper(model.trunk, loss)


def filters_step(
    model: DynamoNet, precision: Precision, *, applied: bool = True
) -> Callable[[], None]:
    """What the motion filters add, forward and backward: generator, and predicted frames."""
    data, config = frames()[:, :, :FRAMES], model.config
    with torch.no_grad(), precision.autocast():
        features = model.trunk(data)
    levels, side = config.filters.levels, SIDE // config.filters.levels[0]
    grads = [torch.randn(CLIPS, 3, FRAMES, side, side) for _ in levels]

    def step() -> None:
        with precision.autocast():
            filters = model.motion(features.requires_grad_(), FRAMES, (SIDE, SIDE))
        if applied:
            cell_px = config.filters.cell_px
            predicted = predict_levels(data, filters, levels, config.targets, cell_px)
            torch.autograd.backward(predicted, grads)
        else:
            filters.backward(torch.ones_like(filters))
        model.motion.zero_grad()

    return step


def apply_grouped(clip: Tensor, filters: Tensor) -> Tensor:
    """Shared filters applied by one grouped convolution: the way without code of our own."""
    batch, colours, num, height, width = clip.shape
    side = round(filters.shape[2] ** 0.5)
    groups = clip.permute(0, 2, 1, 3, 4).reshape(1, -1, height, width)
    padded = F.pad(groups, (side // 2,) * 4, mode="replicate")
    kernels = filters.view(batch, num, 1, 1, side, side).expand(-1, -1, colours, -1, -1, -1)
    out = F.conv2d(padded, kernels.reshape(-1, 1, side, side), groups=groups.shape[1])
    return out.view(batch, num, colours, height, width).permute(0, 2, 1, 3, 4)


def peak_of_steps(kind: str | None) -> int:
    """Returns the peak memory of three steps; None = the trunk alone. For a process of its own."""
    model = network(kind or "grid")
    _, precision = tuned(model)
    step = trunk_step(model, precision) if kind is None else full_step(model, precision)
    for _ in range(3):
        step()
    return peak_bytes()


def against_torchvision() -> tuple[Table, list[Figure]]:
    model = network("grid")
    _, precision = tuned(model)
    compiled = network("grid")
    tuned(compiled)
    compiled.trunk.compile()
    names = {
        "torchvision r3d_18, NCDHW fp32": plain_step(),
        "torchvision r3d_18, our layout and precision": tuned_plain_step(),
        "DynamoNet, r18-class": full_step(model, precision),
        "DynamoNet, r18-class, trunk compiled": full_step(compiled, precision),
    }
    seconds = interleaved(names, rounds=5)
    plain = seconds["torchvision r3d_18, NCDHW fp32"]
    made = table(f"Training step, {CLIPS} clips of {FRAMES} x {SIDE} x {SIDE}", "", "s", "speed-up")
    for name, times in seconds.items():
        made.add_row(name, f"{statistics.median(times):.2f}", f"{ratio(plain, times):.1f} x")
    made.caption = f"chosen: channels last, {precision}"
    return made, [
        Figure("step_speedup_over_r3d_18", ratio(plain, seconds["DynamoNet, r18-class"]), 6)
    ]


def stem_step(model: DynamoNet, precision: Precision, data: Tensor) -> Callable[[], None]:
    """The convolution of the pixels alone, which need no gradient."""
    conv = cast(nn.Conv3d, model.get_submodule("trunk.stem.conv"))
    with torch.no_grad(), precision.autocast():
        grad = torch.randn_like(conv(data[:, :, :-1]))

    def step() -> None:
        with precision.autocast():
            out = conv(data[:, :, :-1])
        out.backward(grad)

    return step


def flops_of(step: Callable[[], None]) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def by_size() -> tuple[Table, list[Figure]]:
    """Sets the formats side by side, and the stem's share of the time beside that of the FLOP."""
    columns = ("format", "ms a step", "clips/s", "stem, ms", "of the time", "of the FLOP")
    made = table("Training step by size and format", "", *columns)
    figures = []
    for name, (clips, config) in sizes().items():
        data = frames(clips, config.num_frames, config.frame_px)
        steps: dict[str, Callable[[], None]] = {}
        for wanted in ("fp32", "bf16"):
            model = DynamoNet(config)
            _, precision = tuned(model, data, wanted)
            steps[f"{wanted} step"] = full_step(model, precision, data)
            steps[f"{wanted} stem"] = stem_step(model, precision, data)
        seconds = interleaved(steps, rounds=7)
        for wanted in ("fp32", "bf16"):
            step, stem = steps[f"{wanted} step"], steps[f"{wanted} stem"]
            share = ratio(seconds[f"{wanted} stem"], seconds[f"{wanted} step"])
            fair = flops_of(stem) / flops_of(step)
            whole, own = (
                statistics.median(seconds[f"{wanted} {part}"]) for part in ("step", "stem")
            )
            row = (f"{1e3 * whole:.0f}", f"{clips / whole:.0f}", f"{1e3 * own:.1f}")
            made.add_row(name, wanted, *row, f"{share:.0%}", f"{fair:.0%}")
            figure = f"stem_share_by_that_of_flop_{name}_{wanted}"
            figures.append(Figure(figure, share / fair, 1, at_least=False))
        faster = ratio(seconds["fp32 step"], seconds["bf16 step"])
        figures.append(Figure(f"bf16_over_fp32_{name}", faster, 1.8))
    return made, figures


def against_machine() -> tuple[Table, list[Figure]]:
    model = network("grid")
    _, precision = tuned(model)
    peak, single = matmul_rate(precision.dtype), matmul_rate(torch.float32)
    found = conv_rate(model, precision, frames()[:, :, :FRAMES])
    made = table("Convolutions of the r18-class trunk", "", "GFLOP/s")
    made.add_row(f"matrix product, {precision.dtype}", f"{peak / 1e9:.0f}")
    made.add_row("matrix product, fp32", f"{single / 1e9:.0f}")
    made.add_row(
        f"convolutions usable in that precision ({found.share:.0%} of the work)",
        f"{found.usable / 1e9:.0f}",
    )
    return made, [Figure("conv_share_of_matmul_rate", found.usable / peak, 0.8)]


def motion_filters() -> tuple[Table, list[Figure]]:
    made = table("Beside the trunk's step", "", "ms", "share of the trunk's")
    figures = []

    def compare(
        name: str, figure: str, own: Callable[[], object], trunk: Callable[[], None]
    ) -> None:
        seconds = interleaved({"own": own, "trunk": trunk}, rounds=7)
        share = ratio(seconds["own"], seconds["trunk"])
        made.add_row(name, f"{statistics.median(seconds['own']) * 1e3:.1f}", f"{share:.1%}")
        figures.append(Figure(figure, share, 0.05, at_least=False))

    for kind in KINDS:
        for side in (5, 7):
            model = network(kind, side)
            _, precision = tuned(model)
            trunk = trunk_step(model, precision)
            own = filters_step(model, precision)
            compare(f"{kind} filters, K = {side}", f"filters_share_{kind}_k{side}", own, trunk)
            if (kind, side) == ("grid", 7):
                linear = filters_step(model, precision, applied=False)
                compare("of them the generator", "generator_share_grid_k7", linear, trunk)
    model = network("grid")
    pasted = partial(paste_movers, frames(), KINDS["grid"], PretrainSettings().movers.share)
    compare("movers", "movers_share", pasted, trunk_step(model, tuned(model)[1]))
    return made, figures


def one_layer() -> tuple[Table, list[Figure]]:
    made = table("Applying shared filters, forward + backward", "", "ms", "grouped conv2d: ms")
    clip = frames()[:, :, :FRAMES]
    for side in (5, 7):
        filters = torch.randn(CLIPS, FRAMES, side**2, 1, 1, requires_grad=True)
        seconds = interleaved(
            {
                "ours": lambda f=filters: apply_filters(clip, f).sum().backward(),
                "grouped": lambda f=filters: apply_grouped(clip, f).sum().backward(),
            },
            rounds=5,
        )
        own, other = (statistics.median(seconds[n]) * 1e3 for n in ("ours", "grouped"))
        made.add_row(f"K = {side}", f"{own:.1f}", f"{other:.1f}")
    return made, []


def memory() -> tuple[Table, list[Figure]]:
    made = table("Peak memory of a step, each in its own process", "", "MB", "by the trunk's")
    trunk = in_own_process(peak_of_steps, None)
    made.add_row("trunk alone", f"{trunk / 1e6:.0f}", "")
    figures = []
    for kind in KINDS:
        peak = in_own_process(peak_of_steps, kind)
        made.add_row(f"with {kind} filters", f"{peak / 1e6:.0f}", f"{peak / trunk:.2f}")
        figures.append(Figure(f"peak_memory_{kind}", peak / trunk, 1.1, at_least=False))
    return made, figures


def main() -> None:
    """Prints the tables and the figures."""
    keep_freed_memory()  # as trainings do
    parts = [
        by_size(),
        against_torchvision(),
        against_machine(),
        motion_filters(),
        one_layer(),
        memory(),
    ]
    show([made for made, _ in parts], [f for _, figures in parts for f in figures])


if __name__ == "__main__":
    main()
