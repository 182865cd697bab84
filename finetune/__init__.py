"""Stage 3: a classifier on trunk features and dynamic motion representation."""

from typing import TYPE_CHECKING

from dynamonet.lazy import offer

if TYPE_CHECKING:
    from finetune.predict import predict
    from finetune.prediction.settings import PredictSettings
    from finetune.run import finetune
    from finetune.settings import FinetuneSettings

__all__ = ["FinetuneSettings", "PredictSettings", "finetune", "predict"]

offer(
    __name__,
    FinetuneSettings="finetune.settings",
    PredictSettings="finetune.prediction.settings",
    finetune="finetune.run",
    predict="finetune.predict",
)
