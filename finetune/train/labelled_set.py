"""The labelled shard set that a fine-tuning asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dynamonet.commands import command
from dynamonet.errors import UserError
from finetune.settings import FinetuneSettings

if TYPE_CHECKING:
    from dynamonet.shards.shard_set import ShardSet


def open_labelled(settings: FinetuneSettings) -> ShardSet:
    """Opens the labelled set that the settings name.

    Raises:
        UserError: there is none, or it has no labels; the message has the command that makes it.
    """
    from dynamonet.shards.card import CARD, similar_set
    from dynamonet.shards.shard_set import ShardSet
    from dynamonet.storage import Folder

    path = settings.shards_path(settings.shards_name())
    if Folder.at(path).size(CARD) is None:
        raise UserError(
            f"{path}: no shards of {settings.dataset} here{similar_set(Folder.at(path))}\n"
            "Make them with\n"
            f"  {command('shard')} --source VIDEOS --dataset {settings.dataset} "
            f"--output {path}"
        )
    shards = ShardSet.open(path)
    if not shards.classes:
        raise UserError(
            f"{path}: these shards have no labels. Make labelled ones with\n"
            f"  {command('shard')} --source VIDEOS --dataset {settings.dataset} "
            "--output ANOTHER"
        )
    return shards
