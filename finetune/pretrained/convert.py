"""Other people's weights as a trunk: known names, fitted kernels, pixel scale folded in.

    file's tensors --names--> ours --kernels--> 7x7x7, 3x3x3, 1x1x1 --scale--> for our pixels

A 2D kernel k becomes the centre of a 3D one with zeros before and after it in time, so each frame
is seen as the 2D network saw it, the first and last too. I3D's k/3 on each of three taps gives the
same for a still clip, but loses a third at its two ends, and blurs moving ones. The stages then
keep all steps in time: a stride over single taps would pass over frames.

Source: I3D (Carreira and Zisserman, CVPR 2017) for inflation; the centre tap and the folding, ours.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.config import BOTTLENECK_FROM, NetworkConfig, TrunkConfig
from dynamonet.model.trunk import BLOCKS, Trunk
from dynamonet.settings import validate
from dynamonet.video.transforms import MEAN, STD
from finetune.pretrained.architectures import (
    FAMILIES,
    R2PLUS1D,
    UNDERSTOOD,
    BackboneFamily,
    PixelScale,
)

Tensors = dict[str, Tensor]

PIXEL_STD = 0.27  # of RGB in [0, 1]. Source: Hara's statistics of Kinetics
NEIGHBOURS = 0.95  # correlation of pixels side by side, or one frame apart. Source: measured


@dataclass(frozen=True)
class ConvertedBackbone:
    """A trunk that others trained, under our names and for our pixels."""

    family: BackboneFamily
    trunk: TrunkConfig
    tensors: Tensors  # every weight of such a trunk
    others: Tensors  # classifiers and the like, under the file's names
    notes: tuple[str, ...]  # what was done to the weights, one clause each

    def __str__(self) -> str:
        kind = f"{self.trunk.kind}-{self.trunk.depth}, width {self.trunk.width}"
        return "; ".join([f"{self.family.title} ({kind})", *self.notes])

    def model(self) -> NetworkConfig:
        """Returns the default model on such a trunk."""
        return NetworkConfig(input="rgb", trunk=self.trunk)

    def weights(self, config: NetworkConfig) -> Tensors:
        """Returns the weights under the names of a model, then the file's others."""
        own = shapes_of(config.trunk)

        def place(key: str) -> str:  # a block with STC gates keeps its branch one level down
            gated = key.replace(".branch2.", ".branch2.0.")
            return gated if key not in own and gated in own else key

        return {place(key): value for key, value in self.tensors.items()} | self.others


def convert_backbone(tensors: Tensors, origin: str) -> ConvertedBackbone:
    """Makes a trunk of a file's tensors.

    Args:
        origin: Where they come from, for messages.

    Raises:
        UserError: names of no known family, or another network under a known family's names.
    """
    family, prefix = _find_family(tensors, origin)
    named, others = _rename(tensors, family, prefix)
    trunk = _architecture(named, family, origin)
    wanted = shapes_of(trunk)
    fitted = {key: fit_kernel(value, wanted.get(key)) for key, value in named.items()}
    notes = ["each 2D kernel became the centre of a 3D one"] if family.dims == 4 else []
    summed = sum(v.ndim == 5 and v.shape[2] > fitted[k].shape[2] for k, v in named.items())
    if summed:
        notes.append(f"{summed} kernels longer in time than ours hold the sum of their taps")
    if family.shortcuts_without_weights and not any(".branch1_" in key for key in fitted):
        notes.append("shortcuts without weights became projections that do the same")
        fitted |= _plain_shortcuts(wanted)
    counters = {key: torch.tensor(0) for key in wanted if key.endswith("num_batches_tracked")}
    complete = counters | fitted
    _check_whole(complete, wanted, family, origin)
    if family.scales:
        scale = _scale_of(complete, family.scales)
        if scale is None:
            notes.append("its pixel scale is unknown: train all of it, freeze nothing")
        else:
            notes.append(f"{scale.name} scale of pixels folded into the stem")
            complete |= fold_scale(complete, scale)
    return ConvertedBackbone(family, trunk, complete, others, tuple(notes))


def shapes_of(config: TrunkConfig) -> dict[str, torch.Size]:
    """Returns the shape of every weight of a trunk by its name in a model."""
    with torch.device("meta"):
        state = Trunk(config, num_frames=16).state_dict()
    return {f"trunk.{key}": value.shape for key, value in state.items()}


def fit_kernel(kernel: Tensor, shape: torch.Size | None) -> Tensor:
    """Fits a kernel to a 3D one that differs in time; other tensors stay.

    Shorter in time: zeros before and after, exact. Longer than one tap in time: the taps' sum,
    exact for a still clip away from its ends.
    """
    if shape is None or len(shape) != 5:
        return kernel
    if kernel.ndim == 4:
        kernel = kernel.unsqueeze(2)
    if kernel.ndim != 5:
        return kernel
    gap = shape[2] - kernel.shape[2]
    if gap < 0 and shape[2] == 1:
        return kernel.sum(2, keepdim=True)
    return F.pad(kernel, (0, 0, 0, 0, gap // 2, gap // 2)) if gap > 0 and gap % 2 == 0 else kernel


def fold_scale(tensors: Tensors, scale: PixelScale) -> Tensors:
    """Returns the stem for our pixels of one that was trained on another scale.

        y = (STD x + MEAN - mean) / std      the network's pixels y from ours x, each channel
        W y = (W STD / std) x + W (MEAN - mean) / std

    The factor goes into the kernel W, the constant into the running mean of the norm behind it.
    Exact, except where the stem sees padding: it is grey there, no longer the data's mean colour.
    """
    kernel, norm = tensors["trunk.stem.conv.weight"], tensors["trunk.stem.norm.running_mean"]
    mean, std = torch.tensor(scale.mean), torch.tensor(scale.std)
    constant = (kernel.double().sum((2, 3, 4)) * ((MEAN - mean) / std)).sum(1)
    return {
        "trunk.stem.conv.weight": kernel * (STD / std)[:, None, None, None],
        "trunk.stem.norm.running_mean": (norm - constant).to(norm.dtype),
    }


def _find_family(tensors: Tensors, origin: str) -> tuple[BackboneFamily, str]:
    """Returns the family, and what stands before its names, e.g. `module.`."""
    for family in FAMILIES:
        end = family.first_kernel
        prefixes = [
            key[: -len(end)]
            for key, value in tensors.items()
            if value.ndim == family.dims and (key == end or key.endswith("." + end))
        ]
        if prefixes:
            return family, min(prefixes, key=len)
    if any(key.endswith(R2PLUS1D) for key in tensors):
        raise UserError(
            f"{origin}: an R(2+1)D network, whose convolutions are split into space and time "
            "with a batch norm between, which a trunk of 3D convolutions cannot repeat. "
            f"Understood are\n{UNDERSTOOD}"
        )
    names = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:4])
    raise UserError(
        f"{origin}: {len(tensors)} tensors of an unknown network ({names}, ...). Understood are\n"
        f"{UNDERSTOOD}\nunder any prefix, and folders of models that pretraining wrote."
    )


def _rename(tensors: Tensors, family: BackboneFamily, prefix: str) -> tuple[Tensors, Tensors]:
    """Returns a trunk's tensors under our names, and the others under theirs."""
    inner = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    others = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    parts = family.parts[any(".conv3." in key or ".conv_c." in key for key in inner)]
    block = re.compile(family.block)
    places = {key: block.fullmatch(key.rpartition(".")[0]) for key in inner}
    stages = sorted({int(place[1]) for place in places.values() if place})
    named: Tensors = {}
    for key, value in inner.items():
        module, _, leaf = key.rpartition(".")
        place = places[key]
        value = value.float() if value.is_floating_point() else value
        if module in family.stem:
            named[f"trunk.stem.{family.stem[module]}.{leaf}"] = value
        elif place:
            ours = f"trunk.stages.{stages.index(int(place[1]))}.res_blocks.{place[2]}"
            named[f"{ours}.{parts.get(place[3], place[3])}.{leaf}"] = value
        else:
            others[prefix + key] = value
    return named, others


def _architecture(named: Tensors, family: BackboneFamily, origin: str) -> TrunkConfig:
    """Reads depth, kind and width off the names and shapes of a trunk."""
    matches = [re.match(r"trunk\.stages\.(\d+)\.res_blocks\.(\d+)", key) for key in named]
    blocks = {(int(place[1]), int(place[2])) for place in matches if place}
    counts = tuple(Counter(stage for stage, _ in sorted(blocks)).values())
    grouped = named.get("trunk.stages.0.res_blocks.0.branch2.conv_b.weight")
    deep = grouped is not None
    depths = [d for d, of in BLOCKS.items() if of == counts and deep == (d >= BOTTLENECK_FROM)]
    stem = named.get("trunk.stem.conv.weight")
    if not depths or stem is None:
        lacking = (
            f"blocks {counts} a stage" if stem is not None else "no stem of one 7x7 convolution"
        )
        raise UserError(
            f"{origin}: names as of {family.title}, but {lacking}. Understood are\n{UNDERSTOOD}"
        )
    strides = list(family.temporal_strides)
    for stage in range(len(counts)):
        first = named.get(f"trunk.stages.{stage}.res_blocks.0.branch2.0.weight")
        if family.flat_kernels_keep_time and first is not None and first.shape[2] == 1:
            strides[stage] = 1
    in_groups = grouped is not None and grouped.shape[0] > grouped.shape[1]
    values = {
        "kind": "resnext" if in_groups else "resnet",
        "depth": depths[0],
        "width": stem.shape[0],
        "stem_pool": family.stem_pool,
        "temporal_strides": strides,
    }
    return validate(TrunkConfig, values, origin=origin)


def _plain_shortcuts(wanted: dict[str, torch.Size]) -> Tensors:
    """Returns projections that pass every stride-th value on and fill up with zero channels.

    Exact when evaluated: the norm behind the projection undoes its own epsilon.
    """
    made: Tensors = {}
    for key, shape in wanted.items():
        if ".branch1_" not in key or key.endswith("num_batches_tracked"):
            continue
        if len(shape) == 5:
            made[key] = torch.eye(shape[0], shape[1])[:, :, None, None, None]
        else:
            value = {"weight": 1.0, "running_var": 1 - 1e-5}.get(key.rpartition(".")[2], 0.0)
            made[key] = torch.full(shape, value)
    return made


def _check_whole(
    tensors: Tensors, wanted: dict[str, torch.Size], family: BackboneFamily, origin: str
) -> None:
    """Refuses a file that does not fill the very trunk that its names describe."""
    wrong = [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(shape)}"
        for key, shape in wanted.items()
        if key in tensors and tensors[key].shape != shape
    ]
    wrong += [f"{key} is missing" for key in wanted if key not in tensors]
    wrong += [f"{key} has no place" for key in tensors if key not in wanted]
    if wrong:
        raise UserError(
            f"{origin}: names as of {family.title}, but another network: {wrong[0]}"
            f"{f', and {len(wrong) - 1} more' if wrong[1:] else ''}. Understood are\n{UNDERSTOOD}"
        )
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{origin}: {broken[0]} holds values that are no numbers (NaN or infinite)")


def _scale_of(tensors: Tensors, scales: tuple[PixelScale, ...]) -> PixelScale | None:
    """Returns the scale under which natural video gives the spread that the stem recorded.

    Hara's two differ by a factor of 70. None = no scale comes within a factor of 3;
    on real videos, kernels of four kinds came within 2.
    """
    if len(scales) == 1:
        return scales[0]
    recorded = tensors["trunk.stem.norm.running_var"].sqrt()

    def distance(scale: PixelScale) -> float:
        ratio = recorded / expected_spread(tensors["trunk.stem.conv.weight"], scale)
        return abs(math.log(float(ratio.median().clamp(min=1e-9))))

    best = min(scales, key=distance)
    return best if distance(best) < math.log(3) else None


def expected_spread(kernel: Tensor, scale: PixelScale) -> Tensor:
    """Returns the standard deviation (O,) that kernels (O, 3, T, H, W) give on natural video.

    sqrt(w C w), where pixels d apart along any axis, colour too, correlate as NEIGHBOURS ** d.
    """
    scaled = kernel * (PIXEL_STD / torch.tensor(scale.std))[:, None, None, None]
    smooth = scaled
    for axis in range(1, 5):
        place = torch.arange(kernel.shape[axis])
        likeness = NEIGHBOURS ** (place[:, None] - place).abs()
        smooth = (smooth.movedim(axis, -1) @ likeness).movedim(-1, axis)
    return (scaled * smooth).sum((1, 2, 3, 4)).clamp(min=1e-12).sqrt()
