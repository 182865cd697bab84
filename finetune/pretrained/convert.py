"""Other people's weights as a trunk.

A network that a library builds is taken as it is. A ResNet under torchvision's 2D or Hara's names
becomes a trunk of ours: a 2D kernel k becomes the centre of a 3D one with zeros before and after
it in time, so each frame is seen as the 2D network saw it, the first and last too. I3D's k/3 on
each of three taps gives the same for a still clip, but loses a third at its two ends, and blurs
moving ones. The stages then keep all steps in time: a stride over single taps would pass over
frames.

Source: I3D (Carreira and Zisserman, CVPR 2017) for inflation; the centre tap, ours.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.backbone import build_backbone
from dynamonet.model.config import (
    BOTTLENECK_FROM,
    BackboneConfig,
    NetworkConfig,
    PixelScale,
    TrunkConfig,
)
from dynamonet.model.trunk import BLOCKS, Trunk
from dynamonet.settings import validate
from finetune.pretrained.architectures import (
    BASIC,
    BOTTLENECK,
    FIRST_KERNEL,
    HARA,
    IMAGE_RESNET,
    LIBRARIES,
    STEM,
    UNDERSTOOD,
    LibraryFamily,
    ResNetFamily,
)

Tensors = dict[str, Tensor]
Shapes = dict[str, torch.Size]


@dataclass(frozen=True)
class ForeignWeights:
    """The trunk of a network that others trained, under the names of a model."""

    title: str
    network: NetworkConfig  # less its scale of pixels
    scales: tuple[PixelScale, ...]  # that the makers of such networks have used
    tensors: Tensors  # every weight of the trunk
    others: Tensors  # classifiers and the like, under the file's names
    notes: tuple[str, ...] = ()  # what was done to the weights, one clause each

    def __str__(self) -> str:
        return "; ".join([self.title, *self.notes])

    def model(self, scale: PixelScale | None, origin: str) -> NetworkConfig:
        """Returns the network that reads pixels as these weights were trained on.

        Args:
            scale: None = as their makers do.

        Raises:
            UserError: the makers have used several.
        """
        if scale is None and len(self.scales) > 1:
            raise UserError(
                f"{origin}: {self.title}. Such weights are trained on pixels of one of two scales, "
                f"and the file does not say which: give --pixel_scale {' or '.join(self.scales)}"
            )
        return self.network.model_copy(update={"pixel_scale": scale or next(iter(self.scales))})

    def weights(self, config: NetworkConfig) -> Tensors:
        """Returns the weights under the names of a model, then the file's others."""
        own = shapes_of(config)

        def place(key: str) -> str:  # a block with STC gates keeps its branch one level down
            gated = key.replace(".branch2.", ".branch2.0.")
            return gated if key not in own and gated in own else key

        return {place(key): value for key, value in self.tensors.items()} | self.others


def convert(tensors: Tensors, origin: str) -> ForeignWeights:
    """Makes a trunk of a file's tensors.

    Args:
        origin: Where they come from, for messages.

    Raises:
        UserError: names of no known network, or another one under known names.
    """
    broken = [key for key, value in tensors.items() if not value.isfinite().all()]
    if broken:
        raise UserError(f"{origin}: {broken[0]} holds values that are no numbers (NaN or infinite)")
    for library in LIBRARIES:
        found = _beginning(tensors, library.first_kernels)
        if found is not None:
            return _taken(tensors, library, found, origin)
    prefix = _beginning(tensors, (FIRST_KERNEL,))
    if prefix is not None:
        dims = tensors[prefix + FIRST_KERNEL].ndim
        family = IMAGE_RESNET if dims == IMAGE_RESNET.dims else HARA
        return _repeated(tensors, family, prefix, origin)
    names = ", ".join(f"{k} {tuple(v.shape)}" for k, v in list(tensors.items())[:4])
    raise UserError(
        f"{origin}: {len(tensors)} tensors of an unknown network ({names}, ...). Understood are\n"
        f"{UNDERSTOOD}\nunder any prefix, and folders of models that pretraining wrote."
    )


def shapes_of(config: NetworkConfig) -> Shapes:
    """Returns the shape of every weight of a network's trunk by its name in a model."""
    with torch.device("meta"):
        if config.backbone is None:
            trunk: torch.nn.Module = Trunk(config.trunk, num_frames=16)
        else:
            trunk = build_backbone(config.backbone)
    return {f"trunk.{key}": value.shape for key, value in trunk.state_dict().items()}


def _beginning(tensors: Tensors, ends: Iterable[str]) -> str | None:
    """Returns what stands before the names of a network, e.g. `module.`; None = another one."""
    found = [
        key[: -len(end)] for key in tensors for end in ends if key == end or key.endswith("." + end)
    ]
    return min(found, key=len) if found else None


def _split(tensors: Tensors, prefix: str) -> tuple[Tensors, Tensors]:
    """Returns what stands below a prefix, floats in fp32, and the others."""
    inner = {
        key.removeprefix(prefix): value.float() if value.is_floating_point() else value
        for key, value in tensors.items()
        if key.startswith(prefix)
    }
    return inner, {k: v for k, v in tensors.items() if not k.startswith(prefix)}


def _taken(tensors: Tensors, library: LibraryFamily, prefix: str, origin: str) -> ForeignWeights:
    """Finds which of a library's networks a file holds."""
    inner, others = _split(tensors, prefix)
    wrong: dict[str, list[str]] = {}
    for name in library.names:
        network = NetworkConfig(input="rgb", backbone=BackboneConfig(name=name))
        wanted = shapes_of(network)
        parts = {_part(key.removeprefix("trunk.net.")) for key in wanted}
        own = {f"trunk.net.{key}": value for key, value in inner.items() if _part(key) in parts}
        complete = _counters(wanted) | own
        wrong[name] = _misfits(complete, wanted)
        if not wrong[name]:
            left = {prefix + key: v for key, v in inner.items() if _part(key) not in parts}
            title = f"{library.title} {name}"
            return ForeignWeights(title, network, (library.scale,), complete, others | left)
    nearest = min(wrong, key=lambda name: len(wrong[name]))
    raise _another(f"{library.title} networks, most like {nearest}", wrong[nearest], origin)


def _part(key: str) -> str:
    """Returns the part of a network that a weight belongs to, e.g. `layer1`, `blocks.3`."""
    first, second, *_ = key.split(".")
    return f"{first}.{second}" if first == "blocks" else first


def _repeated(tensors: Tensors, family: ResNetFamily, prefix: str, origin: str) -> ForeignWeights:
    """Makes a trunk of ours that does what a ResNet under other names does."""
    named, others = _rename(tensors, prefix)
    trunk = _architecture(named, family, origin)
    network = NetworkConfig(input="rgb", trunk=trunk)
    wanted = shapes_of(network)
    fitted = {key: inflate(value, wanted.get(key)) for key, value in named.items()}
    notes = ["each 2D kernel became the centre of a 3D one"] if family.dims == 4 else []
    if family.shortcuts_without_weights and not any(".branch1_" in key for key in fitted):
        notes.append("shortcuts without weights became projections that do the same")
        fitted |= _plain_shortcuts(wanted)
    complete = _counters(wanted) | fitted
    if wrong := _misfits(complete, wanted):
        raise _another(family.title, wrong, origin)
    title = f"{family.title} ({trunk.kind}-{trunk.depth}, width {trunk.width})"
    return ForeignWeights(title, network, family.scales, complete, others, tuple(notes))


def inflate(kernel: Tensor, shape: torch.Size | None) -> Tensor:
    """Makes a 2D kernel the centre of a 3D one of a shape; other tensors stay."""
    if shape is None or len(shape) != 5 or kernel.ndim != 4:
        return kernel
    beside = shape[2] // 2
    return F.pad(kernel.unsqueeze(2), (0, 0, 0, 0, beside, beside))


def _rename(tensors: Tensors, prefix: str) -> tuple[Tensors, Tensors]:
    """Returns a trunk's tensors under our names, and the others under theirs."""
    inner, others = _split(tensors, prefix)
    parts = BOTTLENECK if any(".conv3." in key for key in inner) else BASIC
    named: Tensors = {}
    for key, value in inner.items():
        module, _, leaf = key.rpartition(".")
        place = re.fullmatch(r"layer(\d+)\.(\d+)\.(.+)", module)
        if module in STEM:
            named[f"trunk.stem.{STEM[module]}.{leaf}"] = value
        elif place:
            ours = f"trunk.stages.{int(place[1]) - 1}.res_blocks.{place[2]}"
            named[f"{ours}.{parts.get(place[3], place[3])}.{leaf}"] = value
        else:
            others[prefix + key] = value
    return named, others


def _architecture(named: Tensors, family: ResNetFamily, origin: str) -> TrunkConfig:
    """Reads depth, kind and width off the names and shapes of a trunk."""
    matches = [re.match(r"trunk\.stages\.(\d+)\.res_blocks\.(\d+)", key) for key in named]
    blocks = {(int(place[1]), int(place[2])) for place in matches if place}
    counts = tuple(Counter(stage for stage, _ in sorted(blocks)).values())
    grouped = named.get("trunk.stages.0.res_blocks.0.branch2.conv_b.weight")
    deep = grouped is not None
    depths = [d for d, of in BLOCKS.items() if of == counts and deep == (d >= BOTTLENECK_FROM)]
    stem = named.get("trunk.stem.conv.weight")
    if not depths or stem is None:
        lacking = f"blocks {counts} a stage" if stem is not None else "no stem of one convolution"
        raise _another(family.title, [lacking], origin)
    in_groups = grouped is not None and grouped.shape[0] > grouped.shape[1]
    values = {
        "kind": "resnext" if in_groups else "resnet",
        "depth": depths[0],
        "width": stem.shape[0],
        "temporal_strides": family.temporal_strides,
    }
    return validate(TrunkConfig, values, origin=origin)


def _plain_shortcuts(wanted: Shapes) -> Tensors:
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


def _counters(wanted: Shapes) -> Tensors:
    """Returns the counters of batch norms, which some files leave out."""
    return {key: torch.tensor(0) for key in wanted if key.endswith("num_batches_tracked")}


def _misfits(tensors: Tensors, wanted: Shapes) -> list[str]:
    """Says what keeps tensors from filling the very trunk that their names describe."""
    wrong = [
        f"{key} has shape {tuple(tensors[key].shape)}, expected {tuple(shape)}"
        for key, shape in wanted.items()
        if key in tensors and tensors[key].shape != shape
    ]
    wrong += [f"{key} is missing" for key in wanted if key not in tensors]
    return wrong + [f"{key} has no place" for key in tensors if key not in wanted]


def _another(title: str, wrong: list[str], origin: str) -> UserError:
    more = f", and {len(wrong) - 1} more" if wrong[1:] else ""
    return UserError(
        f"{origin}: names as of {title}, but another network: {wrong[0]}{more}. Understood are\n"
        f"{UNDERSTOOD}"
    )
