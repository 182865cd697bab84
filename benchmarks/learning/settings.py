"""The settings of each training of the learning benchmark."""

from __future__ import annotations

from typing import Any

from benchmarks.learning import arms
from benchmarks.learning.arms import BY_NAME, DROPOUT, PRECISION, PRETEXTS, Row, Start
from dynamonet.model.config import ModelConfig
from dynamonet.model.files import locate
from finetune.pretrained.load import pretrained_config
from finetune.settings import FinetuneSettings
from pretrain.settings import MoverSettings, PretrainSettings

VAL_SHARE = 0.34  # of the training part's groups
_NEVER = 10.0**6
_LOADER = {"processes": 0, "decoded_gb": 2.0}
_QUIET: dict[str, Any] = {"log_every_steps": 10**6, "checkpoint_every_steps": 10**6}


def pretrain_settings(start: Start, shards: dict[str, str]) -> PretrainSettings:
    """Returns the settings of a pretraining."""
    way = PRETEXTS[start.pretext]
    return PretrainSettings(
        shards=tuple(shards[name] for name in start.sets),
        split=start.split,
        seed=start.seed,
        epochs=_NEVER,
        max_steps=start.steps,
        holdout_share=start.held_out,
        movers=MoverSettings(share=way.movers),
        model=ModelConfig.model_validate(way.config),
        clips=way.clips,  # type: ignore[arg-type]
        loader=_LOADER | {"batch_size": way.batch},  # type: ignore[arg-type]
        optimizer={"lr": way.lr},  # type: ignore[arg-type]
        precision=PRECISION,
        **_QUIET,
    )


def finetune_settings(row: Row, shards: dict[str, str]) -> FinetuneSettings:
    """Returns the settings of a fine-tuning: one rate for trunk and classifier."""
    arm = BY_NAME[row.arm]
    config: dict[str, Any] = arm.way.config
    if arm.brought:  # as it is, for clips of this size
        own = pretrained_config(locate(arm.brought)).model_dump()
        config = config | {name: own[name] for name in ("trunk", "filters")}
    return FinetuneSettings(
        shards=shards[row.set],
        split=row.fold + 1,
        seed=row.seed,
        epochs=_NEVER,
        max_steps=row.longer * arms.STEPS[row.set],
        label_share=row.share,
        val_share=VAL_SHARE if row.part == "val" else 0.0,
        recipe=row.recipe,  # type: ignore[arg-type]
        pretrained="none",
        model=ModelConfig.model_validate(config),
        reads=arm.reads,
        dropout=DROPOUT,
        aux_weight=0.0,
        trunk_rate=1.0,
        test_clips=4,
        test_crops=1,
        clips=arm.way.clips | {"colour_jitter": arm.colour_jitter},  # type: ignore[arg-type]
        loader=_LOADER | {"batch_size": 8},  # type: ignore[arg-type]
        optimizer={"lr": arm.lr},  # type: ignore[arg-type]
        precision=PRECISION,
        **_QUIET,
    )
