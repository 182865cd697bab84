"""3D ResNet and ResNeXt trunks from pytorchvideo's blocks, with Hara-style 3D kernels.

    clip (B, 3, T, H, W)
      stem    a convolution, 7x7x7 by default, stride (1, 2, 2), then max-pool 3x3x3, stride 2
      stage 1..4    residual blocks; stages 2, 3, 4 begin with stride 2 in T, H and W
    features (B, D, T / t_stride, H / s_stride, W / s_stride), each rounded up

Source: Hara et al., CVPR 2018, for depths, kernels and strides; STC (ECCV 2018) for the gates; the
narrow and unpooled variants are ours.
"""

from __future__ import annotations

import warnings
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynamonet.model.config import BOTTLENECK_FROM, TrunkConfig
from dynamonet.model.stc import STC

with warnings.catch_warnings():  # pytorchvideo scripts two layers at import, which torch deprecates
    warnings.simplefilter("ignore")
    from pytorchvideo.models import resnet, stem

blocks: Any = resnet  # its annotations say Tuple[int] where it takes three numbers
stems: Any = stem

BLOCKS = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
}


class Trunk(nn.Module):
    """Stem and four residual stages: clip -> feature map."""

    def __init__(self, config: TrunkConfig, num_frames: int) -> None:
        """Args:
        num_frames: Clip length T that STC gates are built for; without STC any length works.
        """
        super().__init__()
        self.config, self.dim = config, config.dim
        self.temporal_stride, self.spatial_stride = config.temporal_stride, config.spatial_stride
        width = config.width
        self.stem = stems.create_res_basic_stem(
            in_channels=3,
            out_channels=width,
            conv_kernel_size=config.stem_kernel,
            conv_stride=(1, 2, 2),
            conv_padding=tuple(side // 2 for side in config.stem_kernel),
            pool=MaxPool if config.stem_pool else None,
            pool_kernel_size=(3, 3, 3),
            pool_stride=(2, 2, 2),
            pool_padding=(1, 1, 1),
        )
        steps = -(-num_frames // 2) if config.stem_pool else num_frames
        stages, channels = [], width
        for index, num_blocks in enumerate(BLOCKS[config.depth]):
            stride_t = config.temporal_strides[index]
            stride_s = config.spatial_strides[index]
            steps = -(-steps // stride_t)
            stage = _stage(config, index, num_blocks, channels, (stride_t, stride_s), steps)
            stages.append(stage)
            channels = _out_channels(config, index)
        self.stages = nn.ModuleList(stages)
        _init_weights(self)

    @property
    def blocks(self) -> list[nn.Module]:
        """The residual blocks, each of which can be computed again going backward."""
        return [block for stage in self.stages for block in cast(Any, stage).res_blocks]

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, H, W) to features (B, D, t, h, w).

        Raises:
            UserError: T differs from the one the STC gates were built for.
        """
        x = self.stem(clip)
        for stage in self.stages:
            x = stage(x)
        return x


class MaxPool(nn.MaxPool3d):
    """Keeps the format of its input, which autocast widens on a CPU: a maximum rounds nothing."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return cast(Tensor, super().forward(input))


class BasicBlock(nn.Sequential):
    """Two 3x3x3 convolutions, each with batch norm; the branch of ResNet-10/18/34."""

    def __init__(self, dim_in: int, dim_out: int, stride: tuple[int, int, int]) -> None:
        super().__init__(
            nn.Conv3d(dim_in, dim_out, 3, stride, 1, bias=False),
            nn.BatchNorm3d(dim_out),
            nn.ReLU(inplace=True),
            nn.Conv3d(dim_out, dim_out, 3, 1, 1, bias=False),
            nn.BatchNorm3d(dim_out),
        )


def _stage(
    config: TrunkConfig,
    index: int,
    num_blocks: int,
    dim_in: int,
    strides: tuple[int, int],
    steps: int,
) -> nn.Module:
    dim_out = _out_channels(config, index)
    chain = []
    for block in range(num_blocks):
        stride = (strides[0], strides[1], strides[1]) if block == 0 else (1, 1, 1)
        first_in = dim_in if block == 0 else dim_out
        branch = _branch(config, index, first_in, dim_out, stride)
        last = block == num_blocks - 1
        if config.stc == "block" or (config.stc == "stage" and last):
            branch = nn.Sequential(branch, STC(dim_out, steps, config.stc_reduction))
        projected = first_in != dim_out or stride != (1, 1, 1)
        chain.append(
            blocks.ResBlock(
                branch1_conv=nn.Conv3d(first_in, dim_out, 1, stride, bias=False)
                if projected
                else None,
                branch1_norm=nn.BatchNorm3d(dim_out) if projected else None,
                branch2=branch,
                activation=nn.ReLU(inplace=True),
                branch_fusion=torch.add,
            )
        )
    return blocks.ResStage(nn.ModuleList(chain))


def _branch(
    config: TrunkConfig, index: int, dim_in: int, dim_out: int, stride: tuple[int, int, int]
) -> nn.Module:
    if config.depth < BOTTLENECK_FROM:
        return BasicBlock(dim_in, dim_out, stride)
    grouped = config.kind == "resnext"
    return blocks.create_bottleneck_block(
        dim_in=dim_in,
        dim_inner=dim_out // (2 if grouped else 4),
        dim_out=dim_out,
        conv_a_kernel_size=(1, 1, 1),
        conv_a_stride=(1, 1, 1),
        conv_a_padding=(0, 0, 0),
        conv_b_kernel_size=(3, 3, 3),
        conv_b_stride=stride,
        conv_b_padding=(1, 1, 1),
        conv_b_num_groups=32 if grouped else 1,
    )


def _out_channels(config: TrunkConfig, index: int) -> int:
    return config.width * 2**index * (4 if config.depth >= BOTTLENECK_FROM else 1)


def _init_weights(trunk: Trunk) -> None:
    """He initialisation, fan out. Source: Hara's code does the same."""
    for module in trunk.modules():
        if isinstance(module, nn.Conv3d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
