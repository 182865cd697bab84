"""What a frozen network knows, and what a pretraining was worth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dynamonet.errors import UserError
from dynamonet.frozen.ridge import Known, Looks
from dynamonet.model.classifier import Head
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.shards.rows import RowSet
from dynamonet.shards.shard_set import ShardSet
from dynamonet.training.measuring import Measuring
from dynamonet.training.numerics.precision import forward_precision
from pretrain.frozen import DrawnActions, LabelledClips, Verdict, labelled_rows, reading
from pretrain.objective import Pretraining
from pretrain.settings import CURVE, PretrainSettings

TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
)
CPU = torch.device("cpu")


def alone(model: DynamoNet) -> Measuring:
    return Measuring.alone(CPU, forward_precision(model, "fp32", CPU), 32, 0)


def network(seed: int = 0) -> DynamoNet:
    torch.manual_seed(seed)
    return DynamoNet(TINY).eval()


def knowing(sharp: float) -> DynamoNet:
    """Returns a network of which `Told` says that it tells classes so well apart."""
    model = network()
    with torch.no_grad():
        next(model.trunk.parameters()).flatten()[0] = sharp
    return model


class Told(LabelledClips):
    """Clips of which every network reads noise and, as far as it knows, the class."""

    def looks(self, model: DynamoNet, measuring: Measuring) -> Looks:
        draw = torch.Generator().manual_seed(5)
        label = torch.from_numpy(self.known.label[self.rows])
        inputs: list[Tensor] = []
        for own in model.networks:
            assert own.classifier is not None
            for head in own.classifier.heads:
                assert isinstance(head, Head)
                x = torch.randn(len(label), head.norm.num_features, generator=draw)
                x[torch.arange(len(label)), label] += next(own.trunk.parameters()).flatten()[0]
                inputs.append(x.detach())
        yield inputs, self.rows


def told(classes: int = 4, videos: int = 96) -> Told:
    rows = np.arange(videos)
    known = Known(rows % classes, rows, rows // classes % 3, np.ones(classes))
    groups = {row: str(row) for row in rows.tolist()}
    return Told(known, rows, groups, 0.1, TINY, None)  # type: ignore[arg-type]


def test_own_pretraining_is_kept_where_it_adds_and_not_where_it_does_not() -> None:
    nothing, something, much = (knowing(sharp) for sharp in (0.0, 1.5, 4.0))
    asked, by = told(), alone(nothing)
    good = Verdict.of(asked, nothing, much, something, by)
    assert good.metrics["verdict/kept"] == 1
    assert good.metrics["verdict/gain_low"] > 0
    line = good.line("runs/own/model")
    assert "kept. Use both" in line and "--pretrained motion,runs/own/model" in line
    bad = Verdict.of(asked, nothing, nothing, much, by)
    assert bad.metrics["verdict/kept"] == 0
    assert bad.metrics["verdict/together_top1"] == bad.metrics["verdict/brought_top1"]
    assert "not kept. Use --pretrained motion" in bad.line("runs/own/model")


def test_more_video_is_worth_what_the_curve_says_and_nothing_beyond_it() -> None:
    learnt = Verdict({"start_top1": 0.4, "own_top1": 0.5})
    assert "about +9 points in ten times the steps, nothing in as many" in learnt.of_more_video(
        3_000
    )
    assert "what was not measured" in learnt.of_more_video(max(CURVE))
    said = [learnt.of_more_video(clips) for clips in (3_200, 8_000, 20_000)]
    gains = [int(each.split("about ")[1].split()[0]) for each in said]
    assert gains == sorted(gains, reverse=True) and gains[-1] > 0
    nothing = Verdict({"start_top1": 0.5, "own_top1": 0.5})
    assert "nothing is expected" in nothing.of_more_video(3_000)


def test_without_labels_drawn_actions_are_asked_for_the_same_ones_each_time() -> None:
    model = network()
    asked, by = DrawnActions.of(64, 0.08, TINY), alone(model)
    first, again = (asked.figures([model], by)[0] for _ in range(2))
    assert (first.fitted.right == again.fitted.right).all()
    assert len(first.groups) == 64 and asked.commonest == 1 / 16
    own = Verdict.of(asked, network(), network(1), network(2), by)
    assert "--probe.shards" in own.line("m") and "verdict/brought_top1" not in own.metrics


def test_networks_are_read_as_they_are_and_stay_as_they_were() -> None:
    one, other = network(0), network(1)
    before = [value.clone() for value in one.state_dict().values()]
    model = reading([one, other], 3, 0.1, TINY)
    clip = torch.randn(2, 3, 8, 32, 32)
    inputs = model.heads_inputs(clip)
    assert len(inputs) == 4 and model.config.num_classes == 3
    dim = one.trunk.dim
    torch.testing.assert_close(inputs[0][:, :dim], one(clip).pooled)
    torch.testing.assert_close(inputs[2][:, :dim], other(clip).pooled)
    after = one.state_dict().values()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_test_videos_are_never_asked_for_and_groups_stay_whole(shard_set: Path) -> None:
    shards = ShardSet.open(str(shard_set))
    rows = labelled_rows(shards, 1, 1000)
    assert set(rows.tolist()) == set(shards.rows(split=1, part="train").numbers().tolist())
    fewer = labelled_rows(shards, 1, 5)
    assert len(fewer) == 5 and set(fewer.tolist()) <= set(rows.tolist())
    known, sources = Known.of(shards, rows, 0), shards.table["source"].to_pylist()
    folds: dict[str, set[int]] = {}
    for row in rows.tolist():
        folds.setdefault(sources[row], set()).add(int(known.fold[row]))
    assert all(len(each) == 1 for each in folds.values())


def test_sets_that_cannot_be_asked_are_refused(
    shard_set: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = ShardSet.open(str(shard_set))
    settings = PretrainSettings.model_validate({"model": {"num_frames": 4}})
    plain = shards.card.model_copy(update={"classes": ()})
    with pytest.raises(UserError, match=r"(?s)probe\.shards: .* has no labels.*--dataset folder"):
        labelled_rows(replace(shards, card=plain), 1, 10)
    one = RowSet.of(shards.rows(split=1, part="train")[[0]], len(shards))
    monkeypatch.setattr(ShardSet, "rows", lambda *_, **__: one)
    task = Pretraining(settings, (str(shard_set),), str(shard_set))
    with pytest.raises(UserError, match="too few videos to keep some apart"):
        _ = task._asked
