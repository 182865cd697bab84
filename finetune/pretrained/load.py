"""Which pretrained weights go into a model, and which do not."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dynamonet.commands import command
from dynamonet.digest import digest_of_bytes, digest_of_stream
from dynamonet.errors import UserError
from dynamonet.model.config import LossName, ModelConfig, NetworkConfig, PixelScale
from dynamonet.model.files import (
    DESCRIPTION,
    LOSS,
    MODEL,
    WEIGHTS,
    locate,
    read_description,
    read_weights,
    weights_digest,
)
from dynamonet.settings import validate
from dynamonet.shards.settings import ClipSettings
from dynamonet.tracking.search import download, newest_finished
from dynamonet.tracking.store import tracking_uri
from dynamonet.training.start import Pretrained, check_input, model_at
from finetune.pretrained.convert import ForeignWeights, convert
from finetune.pretrained.foundation import foundation_network, is_foundation, read_foundation
from finetune.pretrained.weight_files import SUFFIXES, read_tensors
from finetune.settings import FinetuneSettings

STRIDES = {"stride_frames", "stride_seconds"}


def find_each(settings: FinetuneSettings) -> list[Pretrained]:
    """Resolves a --pretrained that may name several models; empty means from scratch.

    Raises:
        UserError: see `find_pretrained`; or one is named twice, or is other people's.
    """
    singles = [settings.model_copy(update={"pretrained": name}) for name in settings.starts]
    found = [each for single in singles if (each := find_pretrained(single))]
    places = [each.folder for each in found]
    if len(set(places)) < len(places):
        raise UserError(f"--pretrained {settings.pretrained} names one model twice")
    if len(found) > 1 and (others := [place for place in places if is_foreign(place)]):
        raise UserError(
            f"--pretrained {settings.pretrained}: {others[0]} is other people's; only models of "
            "ours are read together"
        )
    return found


def find_pretrained(settings: FinetuneSettings) -> Pretrained | None:
    """Resolves --pretrained to a model's folder or other people's weights; None means from scratch.

    Raises:
        UserError: there is no such model, and the message names the command that makes one; or it
            is not understood.
    """
    wanted = settings.pretrained
    if wanted == "none":
        return None
    if len(settings.starts) > 1:
        raise UserError(
            f"--pretrained {wanted} names several models; only python finetune/run.py --recipe "
            "ridge reads them together, give one here"
        )
    if wanted == "newest":
        uri = tracking_uri(settings.runs_path())
        newest = newest_finished(uri, settings.experiment, "pretrain")
        if newest is None:
            raise UserError(
                f"no finished pretraining run in {uri}. Make one with\n"
                f"  {command('pretrain')}\nor start from the network that the package brings with "
                "--pretrained motion, or from scratch with --pretrained none"
            )
        return model_at(Path(newest[1]))
    if re.fullmatch("[0-9a-f]{32}", wanted) and not Path(wanted).exists():
        return model_at(download(tracking_uri(settings.runs_path()), wanted, MODEL))
    return weights_at(wanted)


def weights_at(place: str) -> Pretrained:
    """Finds a model, or weights that others trained.

    Args:
        place: See `locate`; or a file of weights, or a folder that transformers saved.

    Raises:
        UserError: there is none, or it is not understood.
    """
    file = Path(place).expanduser().absolute()
    if file.is_file() and file.name == WEIGHTS:
        ours = file.parent / DESCRIPTION
        file = file.parent if ours.is_file() or is_foundation(file.parent) else file
    if file.suffix in SUFFIXES and not file.exists():
        raise UserError(f"{place}: no such file of weights")
    found = file if file.is_file() else locate(str(file) if file.exists() else place)
    if is_foreign(found):
        return Pretrained(found, None, str(read_foreign(found)))
    return model_at(found)


def is_foreign(place: Path) -> bool:
    """Tells whether weights are other people's: a file, or a folder that transformers saved."""
    return place.is_file() or (is_foundation(place) and not (place / DESCRIPTION).is_file())


def read_foreign(place: Path) -> ForeignWeights:
    """Reads the weights that others trained.

    Raises:
        UserError: damaged, or not understood.
    """
    return read_foundation(place) if place.is_dir() else convert(read_tensors(place), str(place))


def pretrained_config(place: Path, scale: PixelScale | None = None) -> NetworkConfig:
    """Returns the architecture of a model's folder, or of weights that others trained.

    Args:
        scale: Of the pixels that others trained on; None = as they usually do.

    Raises:
        UserError: neither is here, or it is damaged or not understood; or a scale is given for a
            model of ours.
    """
    if is_foreign(place):
        if place.is_dir():
            return foundation_network(place).model_copy(update={"pixel_scale": scale or "imagenet"})
        return read_foreign(place).model(scale, str(place))
    if scale is not None:
        raise UserError(f"--pixel_scale {scale}: {place} is a model of ours, which says so itself")
    return validate(ModelConfig, read_description(place)["model"], origin=str(place)).network


def learnt_clips(place: Path) -> ClipSettings:
    """Returns how the clips were cut that a model of ours learnt from; the defaults if unknown."""
    said = {} if is_foreign(place) else read_description(place).get("clips", {})
    return validate(ClipSettings, said, origin=str(place))


def as_learnt(clips: ClipSettings, place: Path) -> ClipSettings:
    """Takes the time between frames and the size of the square over from the weights.

    What the user has set stays.
    """
    learnt, given = learnt_clips(place), clips.model_fields_set
    taken = {"canvas_px"} | (set() if given & STRIDES else STRIDES)
    known = learnt.model_fields_set & taken - given
    return clips.model_copy(update={name: getattr(learnt, name) for name in known})


def pretrained_loss(place: Path) -> LossName:
    """Returns how a model's pretraining compared frames; MSE where that is not known."""
    return "mse" if is_foreign(place) else read_description(place).get(LOSS, "mse")


def pretrained_weights(place: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """Returns the weights of a model's folder or of others, under the names of a model.

    Args:
        config: The model that they are meant for.

    Raises:
        UserError: neither is here, or it is damaged or not understood; or they were trained on
            another input.
    """
    if is_foreign(place):
        foreign = read_foreign(place)
        check_input(place, foreign.network.input, config)
        return foreign.weights(config)
    check_input(place, pretrained_config(place).input, config)
    return read_weights(place)


def digest_of_weights(place: Path, scale: PixelScale) -> str:
    """Returns the digest of weights; of other people's with the pixels that they are shown."""
    if not is_foreign(place):
        return weights_digest(place)
    digests = [scale]
    for file in [place] if place.is_file() else sorted(place.glob("*.safetensors")):
        with file.open("rb") as stream:
            digests.append(digest_of_stream(stream))
    return digest_of_bytes(" ".join(digests).encode())
