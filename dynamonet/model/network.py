"""DynamoNet = trunk + dynamic motion filters + classifier, in one typed result.

clip (B, 3, T, H, W) -> differences -> trunk -> features -> filters -> predicted frames
                                                  |           |
                                                pooled        DMR, or named numbers of motion
                                                  |           |
                                                  classifier -> logits
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import torch
from torch import Tensor, nn

from dynamonet.errors import UserError
from dynamonet.model.backbone import build_backbone
from dynamonet.model.classifier import Classifier
from dynamonet.model.config import PIXEL_SCALES, ModelConfig, NetworkConfig, PixelScale
from dynamonet.model.files import (
    DESCRIPTION,
    facts,
    locate,
    read_description,
    read_weights,
    upload,
    write_model,
)
from dynamonet.model.motion_field import (
    MotionField,
    frame_difference,
    motion_field,
    motion_numbers,
)
from dynamonet.model.motion_filters import MotionFilters
from dynamonet.model.numbers import NUMBERS
from dynamonet.model.prediction import predict_levels
from dynamonet.model.trunk import Trunk
from dynamonet.settings import validate


@dataclass(frozen=True)
class Output:
    """What one forward pass gives. N = T filters within the clip, H for future frames."""

    features: Tensor  # (B, D, t, h, w)
    pooled: Tensor  # (B, D), features averaged over time and space
    filters: Tensor  # (B, L, N, K*K, gh, gw)
    dmr: Tensor  # (B, dmr_dim), the dynamic motion representation; (B, 0) if only features are read
    motion: Tensor  # (B, M), what the classifier reads beside the features
    predicted: list[Tensor]  # for each level (B, 3, N, H // level, W // level)
    heads: Tensor | None  # (B, H, num_classes), logits of each head; None without a classifier

    @property
    def logits(self) -> Tensor | None:
        """The mean of the heads' logits, (B, num_classes)."""
        return None if self.heads is None else self.heads.mean(1)

    @property
    def probabilities(self) -> Tensor:
        """How likely the classes are, (B, N) in double precision, on the CPU."""
        assert self.logits is not None
        return self.logits.double().softmax(1).cpu()

    def __repr__(self) -> str:
        def shape(value: Any) -> Any:
            return tuple(value.shape) if isinstance(value, Tensor) else value

        items = {**self.__dict__, "predicted": [shape(p) for p in self.predicted]}
        return f"Output({', '.join(f'{k}={shape(v)}' for k, v in items.items())})"


def frame_differences(clip: Tensor) -> Tensor:
    """Returns twice each frame less the one before it; nothing changed in the first frame.

    Args:
        clip: (B, 3, T, H, W), normalised; twice its differences vary about as much as it does.

    Source: RGB difference of TSN (Wang et al., ECCV 2016).
    """
    return 2 * clip.diff(dim=2, prepend=clip[:, :, :1])


class PixelScaling(nn.Module):
    """Pixels as the trunk was trained on them: y = (x std + mean - its mean) / its std."""

    def __init__(self, scale: PixelScale) -> None:
        super().__init__()
        (mean, std), (own_mean, own_std) = PIXEL_SCALES["pytorchvideo"], PIXEL_SCALES[scale]
        pairs = zip(mean, std, own_mean, own_std, strict=True)
        values = [(s / t, (m - n) / t) for m, s, n, t in pairs]
        self.needed = scale != "pytorchvideo"
        self.scales: Tensor
        self.register_buffer("scales", torch.tensor(values), persistent=False)

    def forward(self, clip: Tensor) -> Tensor:
        """Maps a clip (B, 3, T, H, W) of our scale to the trunk's."""
        if not self.needed:
            return clip
        factor, shift = self.scales[:, :, None, None, None].unbind(1)
        return clip * factor + shift


class DynamoNet(nn.Module):
    """The whole network; needs neither labels nor the next frame to run."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        config = config if isinstance(config, ModelConfig) else ModelConfig.of(config)
        self.config = config
        self.pixels = PixelScaling(config.pixel_scale)
        self.trunk = (
            Trunk(config.trunk, config.num_frames)
            if config.backbone is None
            else build_backbone(config.backbone)
        )
        future = config.targets == "future"
        self.motion = MotionFilters(
            self.trunk.dim,
            config.filters,
            num_filters=config.horizon if future else config.num_frames,
            last_step_only=future,
            temporal_stride=self.trunk.temporal_stride,
            spatial_stride=self.trunk.spatial_stride,
        )
        self.classifier = (
            None
            if config.num_classes is None
            else Classifier(config, config.num_classes, self.trunk.dim, self._motion_dim)
        )
        self.beside = nn.ModuleList(DynamoNet(each) for each in config.beside)
        self.frozen: tuple[nn.Module, ...] = ()
        self.facts: dict[str, Any] = {}  # JSON-able, kept beside the weights: classes, clips, run

    def freeze(self) -> None:
        """Leaves only the classifier to be trained; all else also keeps its running statistics."""
        self.frozen = (self.trunk, self.motion, *self.beside)
        for module in self.frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> DynamoNet:
        """Sets training mode, except for what is frozen."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    @property
    def _motion_dim(self) -> int:
        dims = {"features": 0, "dmr": self.motion.dmr_dim, "field": len(NUMBERS)}
        return dims[self.config.reads]

    @property
    def networks(self) -> list[DynamoNet]:
        """This network and those beside it."""
        return [self, *(cast("DynamoNet", each) for each in self.beside)]

    def keep_beside(self, kept: Sequence[int]) -> None:
        """Leaves only some of the networks beside this one, by their places."""
        beside = [self.beside[place] for place in kept]
        configs = tuple(self.config.beside[place] for place in kept)
        self.beside = nn.ModuleList(beside)
        self.config = self.config.model_copy(update={"beside": configs})

    def motion_field(self, filters: Tensor) -> MotionField:
        """Reads filters (B, L, N, K*K, gh, gw) as displacements, by their first level.

        Within a clip the last filter, whose frame the network does not see, is left out.
        """
        config = self.config
        own = filters[:, 0]
        if config.targets == "within_clip" and own.shape[1] > 1:
            own = own[:, :-1]
        side_px = config.frame_px / config.filters.levels[0]
        return motion_field(own, side_px, config.frame_seconds)

    def motion_numbers(self, clip: Tensor, filters: Tensor) -> Tensor:
        """Returns the named numbers of motion (B, M), in the order of `numbers.NUMBERS`.

        Args:
            clip: (B, 3, T, H, W), normalised.
            filters: What the network emits of it.
        """
        seconds = self.config.frame_seconds
        with torch.autocast(clip.device.type, enabled=False):
            difference = frame_difference(clip.float(), self.config.filters.cell_px, seconds)
            return motion_numbers(self.motion_field(filters), difference, seconds)

    def numbers_of(self, clip: Tensor, output: Output) -> Tensor:
        """Returns the named numbers of a clip that was run, see `motion_numbers`."""
        if self.config.reads == "field":
            return output.motion
        return self.motion_numbers(clip, output.filters)

    def forward(self, clip: Tensor, *, predict_frames: bool = True) -> Output:
        """Runs the network on a clip, and those beside it for their heads.

        Args:
            clip: (B, 3, T, H, W), RGB normalised as `dynamonet.video.transforms` does.
            predict_frames: False leaves `predicted` empty and saves its cost.

        Raises:
            UserError: the clip's shape does not suit this architecture.
        """
        own, *others = self.networks
        output = own.alone(clip, predict_frames=predict_frames)
        heads = [output.heads, *(each.alone(clip, predict_frames=False).heads for each in others)]
        said = [each for each in heads if each is not None]
        return replace(output, heads=torch.cat(said, 1)) if others else output

    def heads_inputs(self, clip: Tensor) -> list[Tensor]:
        """Returns what each head of the networks reads of a clip, (B, ...)."""
        inputs: list[Tensor] = []
        for network in self.networks:
            output = network.alone(clip, predict_frames=False)
            assert network.classifier is not None
            with torch.autocast(clip.device.type, enabled=False):
                inputs += network.classifier.inputs(output.features, output.motion)
        return inputs

    def alone(self, clip: Tensor, *, predict_frames: bool) -> Output:
        """Runs this network without those beside it, see `forward`."""
        config = self.config
        if clip.ndim != 5 or clip.shape[1] != 3:
            raise UserError(f"expected a clip (B, 3, T, H, W), found {tuple(clip.shape)}")
        if (
            self.classifier is not None
            and clip.shape[2] != config.num_frames
            and config.reads == "dmr"
        ):
            raise UserError(
                f"this classifier reads the filters of {config.num_frames} frames and got a clip "
                f"of {clip.shape[2]}: sample clips of {config.num_frames} frames"
            )
        seen = self.pixels(clip)
        features = self.trunk(seen if config.input == "rgb" else frame_differences(seen))
        num_filters = clip.shape[2] if config.targets == "within_clip" else config.horizon
        height, width = clip.shape[-2:]
        filters = self.motion(features, num_filters, (height, width))
        levels = config.filters.levels if predict_frames else ()
        predicted = predict_levels(clip, filters, levels, config.targets, config.filters.cell_px)
        pooled = features.mean((2, 3, 4))
        dmr = pooled[:, :0] if config.reads == "features" else self.motion.describe(filters)
        motion = self.motion_numbers(clip, filters) if config.reads == "field" else dmr
        heads = None if self.classifier is None else self.classifier(features, motion)
        return Output(features, pooled, filters, dmr, motion, predicted, heads)

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes weights (safetensors) and the JSON that rebuilds the model into a folder.

        The JSON holds the architecture and `facts`.
        """
        description = {"model": self.config.model_dump(mode="json"), **self.facts}
        write_model(Path(folder), self.state_dict(), description)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload model",
        private: bool | None = None,
        token: str | None = None,
    ) -> str:
        """Uploads the model to the Hugging Face hub and returns the commit's address.

        Args:
            repo_id: `owner/name`; made if it is missing.
            private: Of a repository that is made; None = as the owner's account says.
            token: None = of `hf auth login`.

        Raises:
            UserError: `huggingface_hub` is not installed, or the hub refuses.
        """
        with TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            return upload(
                Path(folder), repo_id, commit_message=commit_message, private=private, token=token
            )

    @classmethod
    def from_pretrained(cls, place: str | Path) -> DynamoNet:
        """Rebuilds a model written by `save_pretrained`, in eval mode, on the CPU.

        Args:
            place: `motion`, which the package brings; its folder; or its Hugging Face hub id
                (`owner/name`, `owner/name@revision`).

        Raises:
            UserError: a file is missing or damaged, or weights and description disagree.
        """
        folder = locate(place)
        description = read_description(folder)
        config = validate(ModelConfig, description["model"], origin=str(folder / DESCRIPTION))
        model = cls(config)
        try:
            model.load_state_dict(read_weights(folder))
        except RuntimeError as error:
            raise UserError(f"{folder}: weights do not fit {DESCRIPTION}: {error}") from None
        model.facts = facts(description)
        return model.eval()
