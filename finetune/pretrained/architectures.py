"""Networks whose weights can become a trunk: their names, geometry and scale of pixels."""

from __future__ import annotations

from dataclasses import dataclass

UNDERSTOOD = """\
  torchvision's resnet18, 34, 50, 101 and resnext50_32x4d    conv1.weight, layer1.0.conv1.weight
  torchvision's r3d_18 and mc3_18                            stem.0.weight, layer1.0.conv1.0.weight
  pytorchvideo's create_resnet, depth 50 and 101 (Slow)      blocks.0.conv.weight
  Hara's ResNet-10 to 101 and ResNeXt-50, 101                conv1.weight, five-dimensional"""

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
VIDEO = {
    "conv1.0": "branch2.0",
    "conv1.1": "branch2.1",
    "conv2.0": "branch2.3",
    "conv2.1": "branch2.4",
    "downsample.0": "branch1_conv",
    "downsample.1": "branch1_norm",
}


@dataclass(frozen=True)
class PixelScale:
    """How a network's training scaled pixels of [0, 1]: (pixel - mean) / std, each (R, G, B)."""

    name: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclass(frozen=True)
class BackboneFamily:
    """Networks that share names, and how a trunk repeats them."""

    title: str
    first_kernel: str  # key that every such file has
    dims: int  # of its kernels
    stem: dict[str, str]
    block: str  # pattern of a block's module: stage, block, part
    parts: dict[bool, dict[str, str]]  # by whether blocks are bottlenecks
    stem_pool: bool
    temporal_strides: tuple[int, int, int, int]
    flat_kernels_keep_time: bool = False  # 1x3x3 kernels go with stride 1 in time
    shortcuts_without_weights: bool = False  # "type A": every stride-th value, zero channels
    scales: tuple[
        PixelScale, ...
    ] = ()  # none = ours; of several, the one that the stem's statistics show


_LAYERS = r"layer(\d+)\.(\d+)\.(.+)"
FAMILIES = (
    BackboneFamily(
        title="torchvision's 2D ResNet",
        first_kernel="layer1.0.conv1.weight",
        dims=4,
        stem={"conv1": "conv", "bn1": "norm"},
        block=_LAYERS,
        parts={False: BASIC, True: BOTTLENECK},
        stem_pool=True,
        temporal_strides=(1, 1, 1, 1),  # a stride would pass over frames: each tap sees one
        scales=(PixelScale("ImageNet's", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),),
    ),
    BackboneFamily(
        title="Hara's 3D ResNet",
        first_kernel="layer1.0.conv1.weight",
        dims=5,
        stem={"conv1": "conv", "bn1": "norm"},
        block=_LAYERS,
        parts={False: BASIC, True: BOTTLENECK},
        stem_pool=True,
        temporal_strides=(1, 2, 2, 2),
        shortcuts_without_weights=True,
        scales=(
            PixelScale(
                "Hara's of 2017", (0.450097, 0.422492, 0.390098), (1 / 255, 1 / 255, 1 / 255)
            ),
            PixelScale("Hara's of 2020", (0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)),
        ),
    ),
    BackboneFamily(
        title="torchvision's video ResNet",
        first_kernel="layer1.0.conv1.0.weight",
        dims=5,
        stem={"stem.0": "conv", "stem.1": "norm"},
        block=_LAYERS,
        parts={False: VIDEO, True: {}},
        stem_pool=False,
        temporal_strides=(1, 2, 2, 2),
        flat_kernels_keep_time=True,
        scales=(
            PixelScale("torchvision's", (0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),
        ),
    ),
    BackboneFamily(
        title="pytorchvideo's ResNet",
        first_kernel="blocks.1.res_blocks.0.branch2.conv_a.weight",
        dims=5,
        stem={"blocks.0.conv": "conv", "blocks.0.norm": "norm"},
        block=r"blocks\.(\d+)\.res_blocks\.(\d+)\.(.+)",
        parts={False: {}, True: {name: name for name in BOTTLENECK.values()}},
        stem_pool=True,
        temporal_strides=(1, 1, 1, 1),
    ),
)
R2PLUS1D = "layer1.0.conv1.0.0.weight"  # each 3D convolution split into space and time
