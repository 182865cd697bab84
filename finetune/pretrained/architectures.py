"""Networks whose weights are understood: their names, and the pixels that they were trained on."""

from __future__ import annotations

from dataclasses import dataclass

from dynamonet.model.config import BackboneName, PixelScale

UNDERSTOOD = """\
  torchvision's resnet18, 34, 50, 101 and resnext50_32x4d    conv1.weight, layer1.0.conv1.weight
  torchvision's r3d_18, mc3_18 and r2plus1d_18               stem.0.weight, layer1.0.conv1.0...
  pytorchvideo's Slow, C2D, I3D, CSN, R(2+1)D, X3D, SlowFast blocks.0...
  Hara's ResNet-10 to 101 and ResNeXt-50, 101                conv1.weight, five-dimensional
  folders of VideoMAE and V-JEPA 2 as transformers saves them: config.json and its weights"""

BASIC = {
    "conv1": "branch2.0",
    "bn1": "branch2.1",
    "conv2": "branch2.3",
    "bn2": "branch2.4",
    "downsample.0": "branch1_conv",
    "downsample.1": "branch1_norm",
}
BOTTLENECK = {
    "conv1": "branch2.conv_a",
    "bn1": "branch2.norm_a",
    "conv2": "branch2.conv_b",
    "bn2": "branch2.norm_b",
    "conv3": "branch2.conv_c",
    "bn3": "branch2.norm_c",
    "downsample.0": "branch1_conv",
    "downsample.1": "branch1_norm",
}


@dataclass(frozen=True)
class ResNetFamily:
    """Networks that our trunk repeats under other names."""

    title: str
    dims: int  # of the kernels
    temporal_strides: tuple[int, int, int, int]
    scales: tuple[PixelScale, ...]  # that their makers have used
    shortcuts_without_weights: bool = False  # "type A": every stride-th value, zero channels


STEM = {"conv1": "conv", "bn1": "norm"}
FIRST_KERNEL = "layer1.0.conv1.weight"  # that every ResNet's file has
IMAGE_RESNET = ResNetFamily(
    title="torchvision's 2D ResNet",
    dims=4,
    temporal_strides=(1, 1, 1, 1),  # a stride would pass over frames: each tap sees one
    scales=("imagenet",),
)
HARA = ResNetFamily(
    title="Hara's 3D ResNet",
    dims=5,
    temporal_strides=(1, 2, 2, 2),
    scales=("hara_2017", "hara_2020"),
    shortcuts_without_weights=True,
)


@dataclass(frozen=True)
class LibraryFamily:
    """Networks that a library builds, so that they are taken as they are."""

    title: str
    first_kernels: tuple[str, ...]  # one of which every such file has
    names: tuple[BackboneName, ...]
    scale: PixelScale


LIBRARIES = (
    LibraryFamily(
        title="torchvision's",
        first_kernels=("layer1.0.conv1.0.weight", "layer1.0.conv1.0.0.weight"),
        names=("r3d_18", "mc3_18", "r2plus1d_18"),
        scale="kinetics",
    ),
    LibraryFamily(
        title="pytorchvideo's",
        first_kernels=("blocks.1.res_blocks.0.branch2.conv_a.weight",),
        names=("slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50", "x3d_m", "x3d_l"),
        scale="pytorchvideo",
    ),
    LibraryFamily(
        title="pytorchvideo's",
        first_kernels=("blocks.1.multipathway_blocks.0.res_blocks.0.branch2.conv_a.weight",),
        names=("slowfast_r50", "slowfast_r101"),
        scale="pytorchvideo",
    ),
)
