"""The networks that DynamoNet is compared with, each in its place in the same trainer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from dynamonet.errors import need
from dynamonet.model.classifier import Classifier
from dynamonet.model.config import ModelConfig
from dynamonet.model.network import DynamoNet, Output


class FeatureClassifier(DynamoNet):
    """A network without motion filters: another trunk, its features, a classifier."""

    def __init__(self, config: ModelConfig, trunk: nn.Module) -> None:
        nn.Module.__init__(self)
        self.config, self.trunk, self.motion = config, trunk, nn.Identity()  # type: ignore[assignment]
        classes, dim = config.num_classes, config.trunk.dim
        self.classifier = None if classes is None else Classifier(config, classes, dim, 0)
        self.frozen, self.facts, self.beside = (), {}, nn.ModuleList()

    def classified(self, features: Tensor) -> Output:
        """Returns the result for features (B, D, t, h, w)."""
        none = features.new_zeros(len(features), 0)
        heads = None if self.classifier is None else self.classifier(features, none)
        return Output(features, features.mean((2, 3, 4)), none, none, none, [], heads)


class VicReg(DynamoNet):
    """The trunk with the expander of VICReg (Bardes et al. 2022) on its pooled features."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        heads = need("lightly.models.modules.heads", "peers", "VICReg is taken from lightly")
        dim = config.trunk.dim
        self.expander = heads.VICRegProjectionHead(dim, 4 * dim, 4 * dim)


class VideoMae(FeatureClassifier):
    """VideoMAE (Tong et al. 2022) of transformers, small: patches of 2 x 8 x 8, 4 layers."""

    MASKED = 0.75  # 0.9 of 6 x 6 places leaves 4, and learns nothing in the time
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
            initializer_range=0.08,  # Xavier's at this width; 0.02 is that of 768
            use_mean_pooling=False,  # the encoder ends with a norm, as the paper's does
        )
        super().__init__(config, hf.VideoMAEForPreTraining(own))
        if config.num_classes is not None:
            self.trunk = self.trunk.videomae

    def alone(self, clip: Tensor, *, predict_frames: bool = True) -> Output:
        """See `DynamoNet.alone`."""
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
