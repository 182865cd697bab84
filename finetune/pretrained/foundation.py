"""Encoders that transformers saved, with its configuration beside them: VideoMAE and V-JEPA 2."""

from __future__ import annotations

import json
import math
from pathlib import Path

from dynamonet.errors import UserError
from dynamonet.model.backbone import need_transformers
from dynamonet.model.config import BackboneConfig, FilterConfig, NetworkConfig
from dynamonet.model.files import FOREIGN_DESCRIPTION
from finetune.pretrained.convert import ForeignWeights

_MODELS = {"videomae": "VideoMAEModel", "vjepa2": "VJEPA2Model"}
_NOT_BUILT_FROM = set(  # keys of its configuration
    "architectures dtype id2label label2id model_type transformers_version".split()
)
_CLIPS = {"videomae": ("num_frames", "image_size"), "vjepa2": ("frames_per_clip", "crop_size")}


def is_foundation(folder: Path) -> bool:
    """Tells whether transformers saved a model into a folder."""
    return (folder / FOREIGN_DESCRIPTION).is_file()


def read_foundation(folder: Path) -> ForeignWeights:
    """Reads an encoder with its library, from safetensors alone.

    Raises:
        UserError: damaged, or a model of another type; or the library is not installed.
    """
    network = foundation_network(folder)
    assert network.backbone is not None
    kind = network.backbone.name
    library = need_transformers(kind)
    told = library.utils.logging
    before, bar = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()  # it lists the decoder's weights, which are left out
    told.disable_progress_bar()
    try:
        model, found = getattr(library, _MODELS[kind]).from_pretrained(
            folder, use_safetensors=True, output_loading_info=True
        )
    except Exception as error:  # the library raises many kinds
        raise UserError(
            f"{folder}: transformers cannot read it: {error}",
            "Expected config.json and model.safetensors, as its save_pretrained writes them",
        ) from None
    finally:
        told.set_verbosity(before)
        if bar:
            told.enable_progress_bar()
    missing = sorted(key for key in found["missing_keys"] if "predictor" not in key)
    if missing:
        raise UserError(f"{folder}: {len(missing)} weights are missing, e.g. {missing[0]}")
    net = model.encoder if kind == "vjepa2" else model
    tensors = {f"trunk.net.{key}": value.float() for key, value in net.state_dict().items()}
    title = f"transformers' {kind}, {net.config.hidden_size} channels"
    return ForeignWeights(title, network, ("imagenet",), tensors, {})


def foundation_network(folder: Path) -> NetworkConfig:
    """Returns the network that an encoder is, with clips of the size that it was trained on.

    Raises:
        UserError: the configuration is damaged, or of a model of another type.
    """
    path = folder / FOREIGN_DESCRIPTION
    try:
        kind = json.loads(path.read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: damaged, not a configuration of transformers: {error}") from None
    if kind not in _MODELS:
        raise UserError(
            f"{path}: a model of type {kind!r}; of transformers' models {' and '.join(_MODELS)} "
            "are understood"
        )
    library = need_transformers(kind)
    about = library.AutoConfig.from_pretrained(folder)
    options = {k: v for k, v in about.to_diff_dict().items() if k not in _NOT_BUILT_FROM}
    frames, side = (getattr(about, name) for name in _CLIPS[kind])
    return NetworkConfig(
        input="rgb",
        num_frames=frames,
        frame_px=side,
        backbone=BackboneConfig(name=kind, options=options),
        filters=FilterConfig(cell_px=math.gcd(FilterConfig().cell_px, about.patch_size)),
    )
