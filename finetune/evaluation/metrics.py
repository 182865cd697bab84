"""What predictions are worth: accuracy, calibration, confusion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

CALIBRATION_BINS = 15  # Source: Guo et al. 2017


@dataclass(frozen=True)
class Predictions:
    """What a model says of each test video. V videos, N classes."""

    sources: list[str]
    groups: list[str]  # of each; videos of one group are not independent
    labels: NDArray[np.int64]  # (V,)
    probabilities: Floats  # (V, N), averaged over views
    views: NDArray[np.int64]  # (V,) clips x crops that were averaged
    motion: Floats | None = None  # (V, M), `numbers.NUMBERS`, averaged over views

    @property
    def guesses(self) -> NDArray[np.int64]:
        """The likeliest class of each video (V,)."""
        return self.probabilities.argmax(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        return self.guesses == self.labels

    def top(self, k: int) -> float:
        """Returns the share of videos whose class is among the k likeliest."""
        best = np.argsort(-self.probabilities, 1, kind="stable")[:, :k]
        return float((best == self.labels[:, None]).any(1).mean())

    def log_likelihood(self) -> float:
        """Returns the mean log probability of the true class; 0 is perfect."""
        true = self.probabilities[np.arange(len(self.labels)), self.labels]
        return float(np.log(np.maximum(true, 1e-12)).mean())

    def confusion(self) -> NDArray[np.int64]:
        """Returns counts (N, N): rows are true classes, columns predicted ones."""
        num = self.probabilities.shape[1]
        matrix = np.zeros((num, num), np.int64)
        np.add.at(matrix, (self.labels, self.guesses), 1)
        return matrix

    def class_accuracy(self) -> Floats:
        """Returns the accuracy within each class (N,), NaN where the test part has no video."""
        matrix = self.confusion()
        with np.errstate(invalid="ignore"):
            return np.diag(matrix) / matrix.sum(1)

    def confused(self, most: int) -> list[tuple[int, int, int]]:
        """Returns (true class, predicted class, videos) of the likeliest mistakes, worst first."""
        matrix = self.confusion()
        np.fill_diagonal(matrix, 0)
        order = np.argsort(-matrix, axis=None, kind="stable")[:most]
        pairs = [divmod(int(place), len(matrix)) for place in order]
        return [(true, said, int(matrix[true, said])) for true, said in pairs if matrix[true, said]]

    def calibration(self) -> list[tuple[float, float, int]]:
        """Returns (mean confidence, accuracy, videos) of equal bins of confidence with videos."""
        confidence = self.probabilities.max(1)
        bins = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
        parts = [bins == number for number in np.unique(bins)]
        return [
            (float(confidence[part].mean()), float(self.correct[part].mean()), int(part.sum()))
            for part in parts
        ]

    def calibration_error(self) -> float:
        """Returns the mean distance of confidence and accuracy. Source: ECE, Guo et al. 2017."""
        distances = [abs(said - right) * count for said, right, count in self.calibration()]
        return sum(distances) / max(1, len(self.labels))
