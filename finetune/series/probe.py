"""A classifier of kept features: ridge regression, or an attentive probe, in seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.classifier import Classifier
from dynamonet.tracking.runs import TrackedRun
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.logs.buffered import BufferedLogger
from dynamonet.training.run_folder import working_on
from finetune.evaluation.evaluator import Views, by_video, evaluate_test
from finetune.evaluation.finished import find_device
from finetune.evaluation.metrics import Predictions
from finetune.evaluation.protocol import Protocol
from finetune.series.kept_features import KeptFeatures
from finetune.train.experiment import RunResult, Start, tell
from finetune.train.objective import Finetuning
from finetune.train.splits import HELD_OUT, kept_apart

BATCH, STEPS, EPOCHS = 32, 200, 10  # the last two: at least; not studied
RATES = (3e-4, 1e-3, 3e-3)  # peak, of AdamW
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Probe:
    """A classifier to be trained on kept features."""

    task: Finetuning
    kept: KeptFeatures
    device: torch.device

    def classifier(self) -> Classifier:
        """Returns one that has learnt nothing yet."""
        task, dims = self.task, (self.kept.pooled.shape[1] // 2, self.kept.motion.shape[1])
        torch.manual_seed(task.settings.weights_seed)
        classes = len(task.data.classes)
        return Classifier(task.classifier_config(), classes, *dims).to(self.device)

    def finished(self) -> tuple[Classifier, str]:
        """Returns a classifier of the training part, and how its settings were chosen."""
        train = self.task.parts.train
        if self.task.settings.recipe == "attentive":
            rate, chosen = self.chosen()
            return self.trained(train, rate), chosen
        classifier = self.classifier().eval()
        looks = (
            (self._read(classifier, some), self.kept.rows[some]) for some in self._parts(train)
        )
        fitted = self.task.fit([classifier], looks, Rank(0, 1, self.device))
        return classifier, str(fitted)

    def trained(self, rows: Rows, rate: float) -> Classifier:
        """Returns an attentive probe that has learnt the labels of some rows, all their views."""
        task, kept, settings = self.task, self.kept, self.task.settings
        classifier = self.classifier()
        decay = settings.optimizer.weight_decay
        optimizer = torch.optim.AdamW(classifier.parameters(), rate, weight_decay=decay)
        views, draw = kept.of(rows), np.random.default_rng(settings.order_seed)
        steps = max(STEPS, EPOCHS * -(-len(views) // BATCH))
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        labels = task.data.columns["label"]
        weights = None if task.class_weights is None else task.class_weights.to(self.device)
        for _ in range(steps):
            some = draw.permutation(views)[: max(2, min(BATCH, len(views)))]
            wanted = torch.from_numpy(labels[kept.rows[some]].astype(np.int64)).to(self.device)
            heads = classifier(*kept.maps(some, self.device))  # each learns for itself
            loss = F.cross_entropy(
                heads.flatten(0, 1),
                wanted.repeat_interleave(heads.shape[1]),
                weight=weights,
                label_smoothing=settings.augment.label_smoothing,
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return classifier.eval()

    @torch.no_grad()
    def predictions(self, classifier: Classifier, rows: Rows) -> Predictions:
        """Returns what a classifier says of some rows."""
        said = [
            classifier.of_inputs(self._read(classifier, views)).mean(1)
            for views in self._parts(rows)
        ]
        views, kept = self.kept.of(rows), self.kept
        shares: NDArray[np.float64] = torch.cat(said).double().softmax(1).cpu().numpy()
        none = np.zeros((len(views), 0), np.float32)
        return by_video(Views(kept.rows[views], shares, kept.weights[views], none), self.task.data)

    def _parts(self, rows: Rows) -> Iterator[Rows]:
        views = self.kept.of(rows)
        yield from (views[first : first + BATCH] for first in range(0, len(views), BATCH))

    def _read(self, classifier: Classifier, views: Rows) -> list[Tensor]:
        if classifier.attention is not None:
            return classifier.inputs(*self.kept.maps(views, self.device))
        return classifier.beside(*self.kept.pools(views, self.device))

    def chosen(self) -> tuple[float, str]:
        """Chooses the rate by videos that are held out of the training part, and says how.

        It has the best accuracy there; of equals, the best likelihood.
        """
        task = self.task
        train, held = task.parts.train, task.parts.validation
        if not len(held):
            try:
                train, held = kept_apart(task.data, train, HELD_OUT, task.settings.labels_seed)
            except UserError:
                middle = RATES[len(RATES) // 2]
                return middle, f"rate {middle:g}, too few groups to choose it by"
        found: dict[float, tuple[float, float]] = {}
        for rate in RATES:
            predictions = self.predictions(self.trained(train, rate), held)
            found[rate] = predictions.top(1), predictions.log_likelihood()
        videos = len(set(task.data.table["source"].take(held).to_pylist()))
        best = max(found, key=found.__getitem__)
        return best, f"rate {best:g} by {videos} training videos"


def run_probe(
    start: Start, console: Console, above: TrackedRun | None = None, *, kept: KeptFeatures
) -> RunResult:
    """Trains and tests a probe once, as a run of stage 3 without a model of its own.

    Raises:
        UserError: the run's name is taken.
    """
    task, shards = start.task, start.task.data
    with working_on(
        "finetune",
        shards.name,
        task,
        parents=start.parents,
        datasets=[shards.use("training")],
        above=above,
    ) as work:
        if not work.finished:
            began = time.monotonic()
            probe = Probe(task, kept, find_device(task.settings.device))
            classifier, chosen = probe.finished()
            predictions = probe.predictions(classifier, task.parts.test)
            spent = {
                "minutes": (time.monotonic() - began) / 60,
                "parameters": float(sum(p.numel() for p in classifier.parameters())),
            }
            reader = task.reader(task.parts.test)
            with BufferedLogger(work.run, work.folder) as log:
                log.metrics({0: {f"run/{name}": value for name, value in spent.items()}})
                log.evaluation(0, evaluate_test(predictions, reader, shards, shards.classes))
            tell(work.run, work.folder, start, console, chosen)
        metrics, told = work.run.metrics("test/"), Protocol.read(work.folder)
        return RunResult(task.settings, work.folder, work.run, metrics, told)
