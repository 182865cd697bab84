"""Trunks that other libraries build: video networks of torchvision and pytorchvideo, and encoders
of transformers (VideoMAE, V-JEPA 2).

    clip (B, 3, T, H, W) -> the library's layers, less its classifier -> features (B, D, t, h, w)

Features are what the library's own classifier reads, before it pools them. Weights keep the
library's names, below `net.`.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamonet.errors import UserError, need
from dynamonet.model.config import BackboneConfig

TORCHVISION = {"r3d_18": 8, "mc3_18": 1, "r2plus1d_18": 8}  # frames for each step of the features
PYTORCHVIDEO = {  # channels, and frames for each step, of the features
    "slow_r50": (2048, 1),
    "c2d_r50": (2048, 2),
    "i3d_r50": (2048, 2),
    "csn_r101": (2048, 8),
    "r2plus1d_r50": (2048, 4),
    "x3d_m": (192, 1),
    "x3d_l": (192, 1),
}
SLOWFAST = ("slowfast_r50", "slowfast_r101")
ALPHA = 4  # frames of the fast path for each of the slow one. Source: SlowFast (ICCV 2019)
FAST_DIM = 256  # of the fast path's features, beside the slow one's 2048


Layers = Callable[[Any], Sequence[nn.Module]]


class Backbone(nn.Module):
    """A network of another library: its layers run one after the other."""

    def __init__(
        self,
        net: nn.Module,
        layers: Layers,
        *,
        dim: int,
        temporal_stride: int,
        spatial_stride: int,
    ) -> None:
        """Args:
        layers: Returns the network's layers, in order; the first is its stem.
        dim: Channels D of the features.
        temporal_stride: Frames for each step of the features.
        spatial_stride: Pixels for each cell of the features.
        """
        super().__init__()
        self.net = net
        self._layers = layers
        self.dim, self.temporal_stride, self.spatial_stride = dim, temporal_stride, spatial_stride

    @property
    def stem(self) -> nn.Module:
        return self._layers(self.net)[0]

    @property
    def stages(self) -> list[nn.Module]:
        return list(self._layers(self.net)[1:])

    @property
    def blocks(self) -> list[nn.Module]:
        """What can be computed again going backward, one by one."""
        return self.stages

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, H, W) to features (B, D, t, h, w)."""
        x = clip
        for layer in self._layers(self.net):
            x = layer(x)
        return x


class SlowFast(Backbone):
    """Both paths side by side; the fast one averaged over the frames of each slow one."""

    @property
    def blocks(self) -> list[nn.Module]:
        raise UserError("activation_checkpointing: not for SlowFast, whose stages have two paths")

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, H, W), T a multiple of `ALPHA`, to features (B, D, T / 4, h, w).

        Raises:
            UserError: T is no such multiple.
        """
        frames = clip.shape[2]
        if frames % ALPHA:
            raise UserError(
                f"model.num_frames: SlowFast reads a multiple of {ALPHA} frames, found {frames}"
            )
        at = torch.linspace(0, frames - 1, frames // ALPHA).long()  # as pytorchvideo takes them
        paths = [clip[:, :, at.tolist()], clip]
        for layer in self._layers(self.net):
            paths = layer(paths)
        slow, fast = paths
        return torch.cat([slow, F.avg_pool3d(fast, (ALPHA, 1, 1))], 1)


class Encoder(Backbone):
    """A transformer on tubes of pixels; its tokens laid out in time, height and width."""

    def __init__(self, net: nn.Module, layers: Layers, *, side_px: int, **sizes: int) -> None:
        """Args:
        side_px: Height and width of the clips that its places are made for.
        sizes: See `Backbone`.
        """
        super().__init__(net, layers, **sizes)
        self.side_px = side_px

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, S, S) of the size that it was built for to (B, D, t, h, w).

        Raises:
            UserError: another size.
        """
        frames, *sides = clip.shape[2:]
        if sides != [self.side_px, self.side_px] or frames % self.temporal_stride:
            raise UserError(
                f"this encoder reads clips of {self.side_px} px and a multiple of "
                f"{self.temporal_stride} frames, found {frames} frames of {sides[0]} x {sides[1]}",
                "Leave `model` at null, so that it is shown what it was trained on",
            )
        tokens = self.net(clip.transpose(1, 2)).last_hidden_state
        cells = self.side_px // self.spatial_stride
        return tokens.transpose(1, 2).unflatten(2, (-1, cells, cells))


def build_backbone(config: BackboneConfig) -> Backbone:
    """Builds a network with random weights.

    Raises:
        UserError: transformers is not installed, or does not take the options.
    """
    name = config.name
    if name in TORCHVISION:
        net: Any = getattr(importlib.import_module("torchvision.models.video"), name)(weights=None)
        del net.avgpool, net.fc
        return Backbone(
            net,
            lambda net: (net.stem, net.layer1, net.layer2, net.layer3, net.layer4),
            dim=512,
            temporal_stride=TORCHVISION[name],
            spatial_stride=16,
        )
    if name in PYTORCHVIDEO:
        net = _pytorchvideo(name)
        net.blocks = net.blocks[:-1]
        dim, stride = PYTORCHVIDEO[name]
        return Backbone(net, _blocks, dim=dim, temporal_stride=stride, spatial_stride=32)
    if name in SLOWFAST:
        net = _pytorchvideo(name)
        net.blocks = net.blocks[:5]  # behind them both paths are pooled and joined
        dim = 2048 + FAST_DIM
        return SlowFast(net, _blocks, dim=dim, temporal_stride=ALPHA, spatial_stride=32)
    return _encoder(config)


def _encoder(config: BackboneConfig) -> Encoder:
    library = need_transformers(config.name)
    try:
        if config.name == "videomae":
            about = library.VideoMAEConfig(**config.options)
            net = library.VideoMAEModel(about)
            side = about.image_size
        else:
            about = library.VJEPA2Config(**config.options)
            net = library.VJEPA2Model(about).encoder
            side = about.crop_size
    except Exception as error:  # the library raises many kinds
        raise UserError(f"model.backbone.options: transformers refuses them: {error}") from None
    return Encoder(
        net,
        lambda net: (net.embeddings, *getattr(net, "encoder", net).layer),
        side_px=side,
        dim=about.hidden_size,
        temporal_stride=about.tubelet_size,
        spatial_stride=about.patch_size,
    )


def need_transformers(name: str) -> Any:
    """Returns the library.

    Raises:
        UserError: it is not installed.
    """
    return need("transformers", "foundation", f"{name} is a network of the library transformers")


def _blocks(net: Any) -> Sequence[nn.Module]:
    return net.blocks


def _pytorchvideo(name: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module("pytorchvideo.models.hub"), name)()
