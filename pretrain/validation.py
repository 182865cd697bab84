"""Measures a model on videos kept out of training: skill, the life of its features, the probe."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from dynamonet.model.network import DynamoNet, Output
from dynamonet.model.prediction import (
    FramePairs,
    SquaredErrors,
    level_suffix,
    pair_frames,
    prediction_loss,
    squared_errors,
)
from dynamonet.shards.order import Request
from dynamonet.shards.reader import ClipReader
from dynamonet.training.logs.metrics import Evaluation
from dynamonet.training.measuring import Measuring
from pretrain import plots
from pretrain.collapse import effective_rank, spectrum, spread
from pretrain.settings import PretrainSettings


def measure(
    model: DynamoNet,
    reader: ClipReader,
    settings: PretrainSettings,
    measuring: Measuring,
) -> Evaluation:
    """Measures loss, skill, upper bound and features on held-out clips, and draws them.

    Every rank takes its share of the clips; all get the metrics, rank 0 the pictures.
    """
    config, rank = settings.model, measuring.rank
    rows = reader.first(settings.holdout_clips)
    levels = config.filters.levels
    sums = torch.zeros(len(levels), 3, model.motion.num_filters, dtype=torch.float64)
    loss = torch.zeros(1, dtype=torch.float64)
    seen: list[tuple[Tensor, Tensor]] = []
    drawn: tuple[Tensor, Output] | None = None
    for batch in measuring.batches(reader, [Request(row) for row in rows]):
        frames = batch.render()
        with measuring.precision.autocast():
            output, pairs, errors = compared(model, frames)
        sums += errors.cpu()
        loss += prediction_loss(pairs, settings.loss).double().cpu() * len(batch)
        seen.append((output.pooled.float().cpu(), output.dmr.cpu()))
        drawn = drawn or (frames, output)
    sums, loss = rank.sum(sums).cpu(), rank.sum(loss).cpu()
    shares = [
        part for part in rank.gather(seen) for part in cast("list[tuple[Tensor, Tensor]]", part)
    ]
    features, dmr = (torch.cat(parts) for parts in zip(*shares, strict=True))
    errors = [SquaredErrors(*level) for level in sums]
    metrics = {"val/loss": float(loss) / len(rows)}
    for level, of_level in zip(levels, errors, strict=True):
        found = skill_metrics(of_level, config.frames_beyond)
        metrics |= {f"{name}{level_suffix(level, levels)}": v for name, v in found.items()}
    if len(features) > 1:  # one clip alone varies in nothing
        for name, values in (("features", features), ("dmr", dmr)):
            metrics[f"val/{name}_rank"] = effective_rank(values)
            metrics[f"val/{name}_spread"] = spread(values)
    if not rank.is_main or drawn is None:
        return Evaluation(metrics, {}, {})
    frames, output = drawn
    pair = pair_frames(frames, output.predicted, levels, config.targets)[0]
    first = errors[0]
    assert first.upper_bound is not None
    spectra = {"features": spectrum(features), "DMR": spectrum(dmr)}
    figures = {
        "panel/filmstrip-{step:08d}.png": plots.filmstrip(pair),
        "panel/filters-{step:08d}.png": plots.filters(output.filters, frames),
        "panel/learning-{step:08d}.png": plots.learning(
            first.skill, first.upper_bound, config.frames_beyond, spectra
        ),
    }
    return Evaluation(metrics, figures, {})


def compared(model: DynamoNet, frames: Tensor) -> tuple[Output, list[FramePairs], Tensor]:
    """Runs a model on a batch and holds its predictions against the frames that came.

    Returns:
        The output, the pairs of each level, and squared errors (L, 3, N) in float64: of the
        prediction, of a copy, of the best shared filters.
    """
    config, sums = model.config, []
    output: Output = model(frames[:, :, : config.num_frames])
    pairs = pair_frames(frames, output.predicted, config.filters.levels, config.targets)
    for pair in pairs:
        errors = squared_errors(pair, config.filters.size, upper_bound=True)
        assert errors.best is not None
        sums.append(torch.stack([errors.predicted, errors.copied, errors.best]).double())
    return output, pairs, torch.stack(sums)


def skill_metrics(errors: SquaredErrors, num_beyond: int) -> dict[str, float]:
    """Returns skill and its upper bound, over all frames and for each horizon.

    Args:
        errors: Of each predicted frame (N,), the best filters' among them.
        num_beyond: The last so many frames lie beyond the clip: horizons 1, 2, ... The network
            never saw them; frames before them it did.
    """
    total, skill, bound = errors.total, errors.skill, errors.upper_bound
    assert bound is not None and total.upper_bound is not None
    metrics = {
        "val/skill": float(total.skill),
        "val/skill_upper_bound": float(total.upper_bound),
    }
    for horizon, n in enumerate(range(len(skill) - num_beyond, len(skill)), 1):
        metrics[f"val/skill_h{horizon}"] = float(skill[n])
        metrics[f"val/skill_upper_bound_h{horizon}"] = float(bound[n])
    return metrics
