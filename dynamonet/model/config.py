"""What a model is built from; kept beside its weights. Light to import: no torch."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from dynamonet.settings import Settings, whole_number

LossName = Literal["mse", "l1", "smooth_l1"]
BOTTLENECK_FROM = 50  # depths from here on use bottleneck blocks
PixelScale = Literal[
    "pytorchvideo", "imagenet", "kinetics", "hara_2017", "hara_2020", "half", "unit"
]
RGB = tuple[float, float, float]
# mean and deviation of R, G, B in [0, 1] that a network's training took out
PIXEL_SCALES: dict[PixelScale, tuple[RGB, RGB]] = {
    "pytorchvideo": ((0.45, 0.45, 0.45), (0.225, 0.225, 0.225)),  # PySlowFast's, and ours
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "kinetics": ((0.43216, 0.394666, 0.37645), (0.22803, 0.22145, 0.216989)),  # torchvision's
    "hara_2017": ((0.450097, 0.422492, 0.390098), (1 / 255, 1 / 255, 1 / 255)),
    "hara_2020": ((0.4345, 0.4051, 0.3775), (0.2768, 0.2713, 0.2737)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
Reads = Literal["features", "dmr", "field"]
READS = (
    "What the classifier reads: the trunk's features; beside them, in the same layer, the DMR (the "
    "paper's); or beside them, by a head of its own, the named numbers of the motion field (ours)."
)
BackboneName = Literal[
    "r3d_18",
    "mc3_18",
    "r2plus1d_18",
    "slow_r50",
    "c2d_r50",
    "i3d_r50",
    "csn_r101",
    "r2plus1d_r50",
    "x3d_m",
    "x3d_l",
    "slowfast_r50",
    "slowfast_r101",
    "videomae",
    "vjepa2",
]


class TrunkConfig(Settings):
    """What a trunk is built from."""

    kind: Literal["resnet", "resnext"] = Field(
        default="resnet",
        description="Block family; resnext (cardinality 32) exists for depth 50 and 101.",
    )
    depth: Annotated[Literal[10, 18, 34, 50, 101], BeforeValidator(whole_number)] = Field(
        default=18, description="Number of layers."
    )
    width: int = Field(default=64, ge=4, description="Channels after the stem; stages double it.")
    stem_kernel: tuple[int, int, int] = Field(
        default=(7, 7, 7), description="Frames, height and width that the stem's convolution sees."
    )
    stem_pool: bool = Field(default=True, description="Max-pool 3x3x3, stride 2, after the stem.")
    temporal_strides: tuple[int, int, int, int] = Field(
        default=(1, 2, 2, 2), description="Temporal stride of each stage."
    )
    spatial_strides: tuple[int, int, int, int] = Field(
        default=(1, 2, 2, 2), description="Spatial stride of each stage."
    )
    stc: Literal["none", "stage", "block"] = Field(
        default="none",
        description="STC gates: in no block, in the last of each stage, or in every block.",
    )
    stc_reduction: int = Field(default=16, ge=1, description="How far an STC gate narrows (r).")

    @field_validator("stem_kernel")
    @classmethod
    def _odd_kernel(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if any(side < 1 or side % 2 == 0 for side in value):
            raise ValueError("expected three odd numbers, e.g. 3,5,5")
        return value

    @property
    def dim(self) -> int:
        """Channels D of the features."""
        return self.width * 8 * (4 if self.depth >= BOTTLENECK_FROM else 1)

    @property
    def temporal_stride(self) -> int:
        """Frames for each temporal step of the features."""
        return math.prod(self.temporal_strides) * (2 if self.stem_pool else 1)

    @property
    def spatial_stride(self) -> int:
        """Pixels for each spatial cell of the features."""
        return 2 * math.prod(self.spatial_strides) * (2 if self.stem_pool else 1)


class FilterConfig(Settings):
    """What the dynamic motion layer is built from."""

    kind: Literal["shared", "grid"] = Field(
        default="grid",
        description="shared = one filter a frame (the paper's); grid = one a cell (ours).",
    )
    size: int = Field(default=5, description="Filter side K in pixels; odd, 3 to 11.")
    normalisation: Literal["linear", "softmax"] = Field(
        default="softmax",
        description="linear = added to a delta; softmax = weights >= 0 that sum to 1.",
    )
    levels: tuple[int, ...] = Field(
        default=(2,),
        description="Pooling factors of the resolutions predicted; 1 = full resolution.",
    )
    cell_px: int = Field(
        default=8, ge=1, description="grid: pixels between filters; divides the stride."
    )
    dmr_cells: int = Field(
        default=2, ge=1, description="grid: cells a side that the DMR averages into."
    )

    @field_validator("size")
    @classmethod
    def _odd_size(cls, value: int) -> int:
        if value % 2 == 0 or not 3 <= value <= 11:
            raise ValueError("K must be odd and between 3 and 11")
        return value

    @field_validator("levels")
    @classmethod
    def _levels(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or any(level < 1 for level in value) or len(set(value)) != len(value):
            raise ValueError("expected different pooling factors, each 1 or more, e.g. (2,)")
        return value


class BackboneConfig(Settings):
    """A network that another library builds; see `dynamonet.model.backbone`."""

    name: BackboneName = Field(
        description="torchvision's or pytorchvideo's name, or a model type of transformers. x3d_m "
        "is X3D-XS and S too."
    )
    options: dict[str, Any] = Field(
        default={}, description="videomae, vjepa2: the configuration that transformers reads."
    )


class NetworkConfig(Settings):
    """A network without its classifier."""

    num_frames: int = Field(default=16, ge=2, description="Frames T of a clip.")
    frame_px: int = Field(default=112, ge=16, description="Height and width of a clip in pixels.")
    targets: Literal["within_clip", "future"] = Field(
        default="within_clip",
        description="Frames predicted: 2..T+1 (the paper's) or T+1..T+H (ours).",
    )
    horizon: int = Field(default=1, ge=1, description="future: frames H predicted beyond the clip.")
    input: Literal["rgb", "rgb_diff"] = Field(
        default="rgb_diff",
        description="The trunk sees frames (the paper's), or each less the one before (ours).",
    )
    pixel_scale: PixelScale = Field(
        default="pytorchvideo", description="Mean and deviation of the pixels that the trunk sees."
    )
    trunk: TrunkConfig = Field(default=TrunkConfig(), description="The 3D-CNN.")
    backbone: BackboneConfig | None = Field(
        default=None, description="A network that another library builds, in place of the trunk."
    )
    filters: FilterConfig = Field(default=FilterConfig(), description="The dynamic motion filters.")

    @property
    def frames_beyond(self) -> int:
        """Frames after the clip that the loss needs."""
        return self.horizon if self.targets == "future" else 1


class ModelConfig(NetworkConfig):
    """Everything needed to rebuild a model; saved beside its weights."""

    reads: Reads = Field(default="dmr", description=READS)
    pooling: Literal["mean", "mean_std", "attentive"] = Field(
        default="mean",
        description="The classifier reads the features' mean, their mean and deviation, or what a "
        "learnt query attends to.",
    )
    frame_seconds: float = Field(
        default=1.0, gt=0, description="Seconds between frames, which make a motion a speed."
    )
    dropout: float = Field(default=0.5, ge=0, lt=1, description="Dropout before the classifier.")
    num_classes: int | None = Field(
        default=None, ge=1, description="Classes; null = no classifier."
    )
    beside: tuple[ModelConfig, ...] = Field(
        default=(), description="Further networks with heads of their own, which are added."
    )

    @classmethod
    def of(cls, network: NetworkConfig, **classifier: Any) -> ModelConfig:
        """Returns a network's description with that of a classifier; none unless it is given."""
        return cls(**{**dict(network), **classifier})

    @property
    def tells_motion(self) -> bool:
        """Whether its filters are those of a training, and can be read."""
        return self.reads != "features"

    @property
    def network(self) -> NetworkConfig:
        """The same without the classifier."""
        return NetworkConfig(**{name: getattr(self, name) for name in NetworkConfig.model_fields})
