"""Stage 2: a 3D-CNN learns to predict frames of unlabelled video."""

from typing import TYPE_CHECKING

from dynamonet.lazy import offer

if TYPE_CHECKING:
    from pretrain.run import pretrain
    from pretrain.settings import PretrainSettings

__all__ = ["PretrainSettings", "pretrain"]

offer(__name__, PretrainSettings="pretrain.settings", pretrain="pretrain.run")
