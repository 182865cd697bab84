"""The networks that DynamoNet is compared with, each in its place in the same trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamonet.errors import need
from dynamonet.model.classifier import Classifier
from dynamonet.model.config import ModelConfig
from dynamonet.model.network import DynamoNet, Output
from dynamonet.model.prediction import pool_frames
from dynamonet.model.trunk import Trunk


class OneFrame(DynamoNet):
    """Sees the clip's middle frame, repeated."""

    def forward(self, clip: Tensor, *, predict_frames: bool = True) -> Output:
        """See `DynamoNet.forward`."""
        middle = clip.shape[2] // 2
        still = clip[:, :, middle : middle + 1].expand_as(clip)
        return super().forward(still, predict_frames=predict_frames)


class FeatureClassifier(DynamoNet):
    """A network without motion filters: another trunk or input, its features, a classifier."""

    def __init__(self, config: ModelConfig, trunk: nn.Module) -> None:
        nn.Module.__init__(self)
        self.config, self.trunk, self.motion = config, trunk, nn.Identity()  # type: ignore[assignment]
        classes, dim = config.num_classes, config.trunk.dim
        self.classifier = None if classes is None else Classifier(config, classes, dim, 0)
        self.frozen, self.facts = (), {}

    def classified(self, features: Tensor) -> Output:
        """Returns the result for features (B, D, t, h, w)."""
        none = features.new_zeros(len(features), 0)
        logits = None if self.classifier is None else self.classifier(features, none)
        return Output(features, features.mean((2, 3, 4)), none, none, [], logits)


class HandMadeMotion(FeatureClassifier):
    """A motion field found by local matching, nothing learnt, into a 3D-CNN.

    Frames at half resolution, `_PATCH` x `_PATCH` patches less their mean and of unit norm;
    softmax over a `_WINDOW` x `_WINDOW` window of their similarities with the next frame's. Of it
    the mean displacement (u, v) less the frame's median, and the share that moved.
    """

    _PATCH, _WINDOW, _SHARPNESS = 5, 7, 20.0
    _REST = 6.0  # logit by which staying is likelier: what has no texture stands still
    u: Tensor
    v: Tensor

    def __init__(self, config: ModelConfig) -> None:
        strides = config.trunk.spatial_strides
        half = (max(1, strides[0] // 2), *strides[1:])  # the field has half the resolution already
        trunk = Trunk(
            config.trunk.model_copy(update={"spatial_strides": half}), config.num_frames - 1
        )
        super().__init__(config, trunk)
        reach = torch.arange(self._WINDOW).float() - self._WINDOW // 2
        self.register_buffer("u", reach.repeat(self._WINDOW), persistent=False)
        self.register_buffer("v", reach.repeat_interleave(self._WINDOW), persistent=False)

    def forward(self, clip: Tensor, *, predict_frames: bool = True) -> Output:
        """See `DynamoNet.forward`; no frame is ever predicted."""
        return self.classified(self.trunk(self.field(clip)))

    @torch.no_grad()
    def field(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, H, W) to (B, 3, T-1, H/2, W/2): u, v and the share that moved."""
        grey = pool_frames(clip.float(), 2).mean(1)
        batch, frames, height, width = grey.shape
        grey = grey.reshape(-1, 1, height, width)
        side = self._PATCH // 2
        padded = F.pad(grey, (side,) * 4, mode="replicate")
        patches = F.unfold(padded, self._PATCH)
        patches = F.normalize(patches - patches.mean(1, keepdim=True), dim=1, eps=0.05)
        patches = patches.view(batch, frames, -1, height, width)
        now, after = patches[:, :-1].flatten(0, 1), patches[:, 1:].flatten(0, 1)
        reach = self._WINDOW // 2
        around = F.pad(after, (reach,) * 4)  # nothing is like what is outside
        similar = torch.stack(
            [
                (now * around[..., y : y + height, x : x + width]).sum(1)
                for y in range(self._WINDOW)
                for x in range(self._WINDOW)
            ],
            1,
        )
        logits = self._SHARPNESS * similar
        logits[:, self._WINDOW**2 // 2] += self._REST
        weights = logits.softmax(1)
        u, v = torch.einsum("nkhw,dk->dnhw", weights, torch.stack([self.u, self.v]))
        u, v = (each - each.flatten(1).median(1).values[:, None, None] for each in (u, v))
        moved = 1 - weights[:, self._WINDOW**2 // 2]
        field = torch.stack([u, v, moved], 1).view(batch, frames - 1, 3, height, width)
        return field.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)


class VicReg(DynamoNet):
    """The trunk with the expander of VICReg (Bardes et al. 2022) on its pooled features."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        heads = need("lightly.models.modules.heads", "peers", "VICReg is taken from lightly")
        dim = config.trunk.dim
        self.expander = heads.VICRegProjectionHead(dim, 4 * dim, 4 * dim)


class VideoMae(FeatureClassifier):
    """VideoMAE (Tong et al. 2022) of transformers, small: patches of 2 x 8 x 8, 4 layers."""

    MASKED = 0.9
    trunk: Any

    def __init__(self, config: ModelConfig) -> None:
        hf = need("transformers", "peers", "VideoMAE is taken from transformers")
        dim = config.trunk.dim
        own = hf.VideoMAEConfig(
            image_size=config.frame_px,
            patch_size=8,
            num_frames=config.num_frames,
            tubelet_size=2,
            hidden_size=dim,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=4 * dim,
            decoder_hidden_size=dim // 2,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=2 * dim,
            norm_pix_loss=True,
        )
        super().__init__(config, hf.VideoMAEForPreTraining(own))
        if config.num_classes is not None:
            self.trunk = self.trunk.videomae

    def forward(self, clip: Tensor, *, predict_frames: bool = True) -> Output:
        """See `DynamoNet.forward`."""
        encoder = self.trunk.videomae if self.config.num_classes is None else self.trunk
        tokens = encoder(clip.transpose(1, 2)).last_hidden_state
        return self.classified(tokens.transpose(1, 2)[..., None, None])

    def masked_loss(self, clip: Tensor) -> Tensor:
        """Returns the error of `MASKED` of the patches, the same places in all frames."""
        batch, _, frames, height, width = clip.shape
        places = height * width // 64
        hidden = torch.rand(batch, places, device=clip.device).argsort(1) < round(
            self.MASKED * places
        )
        return self.trunk(clip.transpose(1, 2), hidden.repeat(1, frames // 2)).loss
