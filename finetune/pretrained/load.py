"""Which pretrained weights go into a model, and which do not."""

from __future__ import annotations

import re
from pathlib import Path

from torch import Tensor

from dynamonet.commands import command
from dynamonet.errors import UserError
from dynamonet.model.config import LossName, ModelConfig, NetworkConfig
from dynamonet.model.files import (
    DESCRIPTION,
    LOSS,
    MODEL,
    WEIGHTS,
    locate,
    read_description,
    read_weights,
)
from dynamonet.settings import validate
from dynamonet.tracking.search import download, newest_finished
from dynamonet.tracking.store import tracking_uri
from dynamonet.training.start import Pretrained, check_input, model_at
from finetune.pretrained.convert import convert_backbone
from finetune.pretrained.weight_files import SUFFIXES, read_tensors
from finetune.settings import FinetuneSettings


def find_pretrained(settings: FinetuneSettings) -> Pretrained | None:
    """Resolves --pretrained to a model's folder or a file of weights; None means from scratch.

    Raises:
        UserError: there is no such model, and the message names the command that makes one; or a
            file is not understood.
    """
    wanted = settings.pretrained
    if wanted == "none":
        return None
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
    file = Path(wanted).expanduser().absolute()
    if file.is_file() and not (file.name == WEIGHTS and (file.parent / DESCRIPTION).is_file()):
        return Pretrained(file, None, str(convert_backbone(read_tensors(file), wanted)))
    if file.is_file():
        return model_at(file.parent)
    if file.suffix in SUFFIXES and not file.exists():
        raise UserError(f"{wanted}: no such file of weights")
    if re.fullmatch("[0-9a-f]{32}", wanted) and not Path(wanted).exists():
        uri = tracking_uri(settings.runs_path())
        return model_at(download(uri, wanted, MODEL))
    return model_at(locate(wanted))


def pretrained_config(place: Path) -> NetworkConfig:
    """Returns the architecture of a model's folder, or of a file of weights.

    Raises:
        UserError: neither is here, or it is damaged or not understood.
    """
    if place.is_file():
        return convert_backbone(read_tensors(place), str(place)).model()
    return validate(ModelConfig, read_description(place)["model"], origin=str(place)).network


def pretrained_loss(place: Path) -> LossName:
    """Returns how a model's pretraining compared frames; MSE where that is not known."""
    return "mse" if place.is_file() else read_description(place).get(LOSS, "mse")


def pretrained_weights(place: Path, config: NetworkConfig) -> dict[str, Tensor]:
    """Returns the weights of a model's folder or of a file, under the names of a model.

    Args:
        config: The model that they are meant for.

    Raises:
        UserError: neither is here, or it is damaged or not understood; or they were trained on
            another input.
    """
    if place.is_file():
        converted = convert_backbone(read_tensors(place), str(place))
        check_input(place, converted.model().input, config)
        return converted.weights(config)
    check_input(place, pretrained_config(place).input, config)
    return read_weights(place)
