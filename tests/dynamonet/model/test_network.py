from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from dynamonet.errors import UserError
from dynamonet.model.classifier import AttentivePool
from dynamonet.model.config import FilterConfig, ModelConfig, TrunkConfig
from dynamonet.model.files import DESCRIPTION, WEIGHTS
from dynamonet.model.network import DynamoNet, frame_differences
from dynamonet.model.stc import STC
from dynamonet.model.trunk import Trunk

TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1)),
)


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("kind", "depth", "millions"),
    [("resnet", 50, 47.0), ("resnet", 101, 86.1), ("resnext", 50, 26.7), ("resnext", 101, 48.3)],
)
def test_parameters_are_those_of_haras_networks(kind: str, depth: int, millions: float) -> None:
    config = TrunkConfig(kind=kind, depth=depth)  # type: ignore[arg-type]
    with torch.device("meta"):
        trunk = Trunk(config, 16)
    classifier = (config.dim + 1) * 400
    assert round((count(trunk) + classifier) / 1e6, 1) == millions


@pytest.mark.parametrize(("frames", "millions"), [(16, 17.6), (32, 47.7), (64, 159.9)])
def test_stc_adds_what_its_formula_says(frames: int, millions: float) -> None:
    plain = TrunkConfig(kind="resnext", depth=101)
    gated = TrunkConfig(kind="resnext", depth=101, stc="block")
    with torch.device("meta"):
        added = count(Trunk(gated, frames)) - count(Trunk(plain, frames))
    assert round(added / 1e6, 1) == millions


@pytest.mark.parametrize("reduction", [1, 4, 1000])
def test_gates_narrow_by_the_reduction(reduction: int) -> None:
    config = TrunkConfig(depth=10, width=4, stc="block", stc_reduction=reduction)
    trunk = Trunk(config, 16)
    inner = [m for m in trunk.modules() if isinstance(m, STC)]
    widths = [gate.temporal_gate[0].out_features for gate in inner]  # type: ignore[union-attr]
    assert widths == [max(1, channels // reduction) for channels in (4, 8, 16, 32)]
    assert trunk(torch.randn(2, 3, 16, 32, 32)).shape[:2] == (2, 32)


@pytest.mark.parametrize("depth", [10, 18, 34, 50])
@pytest.mark.parametrize("stc", ["none", "stage", "block"])
def test_every_trunk_maps_a_clip_to_features_of_the_size_it_states(depth: int, stc: str) -> None:
    config = TrunkConfig(depth=depth, width=4, stc=stc)  # type: ignore[arg-type]
    features = Trunk(config, 16)(torch.randn(1, 3, 16, 64, 64))
    assert features.shape == (1, config.dim, 1, 2, 2)
    assert (config.temporal_stride, config.spatial_stride) == (16, 32)


def test_the_papers_network_runs_on_a_small_input() -> None:
    config = ModelConfig(
        frame_px=64,
        num_classes=5,
        trunk=TrunkConfig(kind="resnext", depth=101, stc="block"),
        filters=FilterConfig(kind="shared", normalisation="linear", levels=(1,)),
    )
    model = DynamoNet(config).eval()
    with torch.no_grad():
        out = model(torch.randn(1, 3, 16, 64, 64))
    assert out.filters.shape == (1, 1, 16, 25, 1, 1)
    assert out.dmr.shape == (1, 16 * 25)
    assert out.predicted[0].shape == (1, 3, 16, 64, 64)
    assert out.logits is not None and out.logits.shape == (1, 5)


def test_stc_refuses_a_clip_of_another_length_and_a_plain_trunk_takes_it() -> None:
    gated = Trunk(TrunkConfig(depth=10, width=4, stc="block"), 16)
    with pytest.raises(UserError, match="temporal steps"):
        gated(torch.randn(1, 3, 32, 64, 64))
    plain = DynamoNet(TINY)
    out = plain(torch.randn(1, 3, 16, 48, 48))
    assert out.filters.shape[2] == 16 and out.predicted[0].shape[3:] == (24, 24)


def test_the_result_shows_shapes_and_needs_neither_labels_nor_the_next_frame() -> None:
    out = DynamoNet(TINY)(torch.randn(2, 3, 8, 32, 32))
    assert out.logits is None
    assert "features=(2, 32, 2, 2, 2)" in repr(out)
    assert DynamoNet(TINY)(torch.randn(2, 3, 8, 32, 32), predict_frames=False).predicted == []


def test_future_targets_emit_one_filter_for_each_frame_beyond_the_clip() -> None:
    config = TINY.model_copy(update={"targets": "future", "horizon": 3})
    out = DynamoNet(config)(torch.randn(1, 3, 8, 32, 32))
    assert out.filters.shape[2] == 3 and out.predicted[0].shape[2] == 3
    assert config.frames_beyond == 3


def test_the_trunk_sees_what_changed_or_the_frames() -> None:
    clip = torch.rand(2, 3, 8, 32, 32)
    changes = DynamoNet(TINY).eval()
    brighter = changes(clip + 1)
    torch.testing.assert_close(brighter.features, changes(clip).features, atol=1e-4, rtol=1e-4)
    assert (brighter.predicted[0] - changes(clip).predicted[0] - 1).abs().max() < 1e-3  # of frames
    frames = DynamoNet(TINY.model_copy(update={"input": "rgb"})).eval()
    frames.load_state_dict(changes.state_dict())
    torch.testing.assert_close(
        frames(frame_differences(clip)).features, changes(clip).features, atol=1e-5, rtol=1e-5
    )
    assert not frame_differences(clip)[:, :, 0].any()


def test_a_saved_model_rebuilds_itself(tmp_path: Path) -> None:
    model = DynamoNet(TINY.model_copy(update={"num_classes": 3})).eval()
    model.facts = {"classes": ["a", "b", "c"]}
    model.save_pretrained(tmp_path)
    again = DynamoNet.from_pretrained(tmp_path)
    clip = torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(again(clip).logits, model(clip).logits)
    assert again.config == model.config


def test_a_classifier_of_one_head_in_two_norms_is_still_read(tmp_path: Path) -> None:
    model = DynamoNet(TINY.model_copy(update={"num_classes": 3})).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 1.5)
    model.save_pretrained(tmp_path)
    weights, dim = load_file(tmp_path / WEIGHTS), model.trunk.dim
    for name in [name for name in weights if name.startswith("classifier.heads.0.")]:
        value, kind = weights.pop(name), name.removeprefix("classifier.heads.0.")
        if kind.startswith("linear"):
            weights[f"classifier.{kind}"] = value
            continue
        for norm, part in (("norm_features", slice(dim)), ("norm_dmr", slice(dim, None))):
            own = value[part].contiguous() if value.ndim else value.clone()
            weights[f"classifier.{norm}.{kind.removeprefix('norm.')}"] = own
    save_file(weights, tmp_path / WEIGHTS)
    again, clip = DynamoNet.from_pretrained(tmp_path), torch.randn(1, 3, 8, 32, 32)
    torch.testing.assert_close(again(clip).logits, model(clip).logits)


def test_damaged_and_foreign_models_are_refused_with_a_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no model here"):
        DynamoNet.from_pretrained(tmp_path)
    DynamoNet(TINY).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / DESCRIPTION).read_text())

    def with_description(**change: object) -> None:
        (tmp_path / DESCRIPTION).write_text(json.dumps({**saved, **change}))

    before = {key: value for key, value in saved["model"].items() if key != "input"}
    with_description(format_version=1, model=before)  # when frames were the one input
    assert DynamoNet.from_pretrained(tmp_path).config.input == "rgb"
    before = {key: value for key, value in saved["model"].items() if key != "reads"}
    with_description(format_version=2, model={**before, "use_dmr": False})
    assert DynamoNet.from_pretrained(tmp_path).config.reads == "features"
    with_description(format_version=99)
    with pytest.raises(UserError, match="model format 99"):
        DynamoNet.from_pretrained(tmp_path)
    with_description(model={**saved["model"], "num_frame": 8})
    with pytest.raises(UserError, match="did you mean num_frames"):
        DynamoNet.from_pretrained(tmp_path)
    with_description(model={**saved["model"], "num_classes": 4})
    with pytest.raises(UserError, match=f"weights do not fit {DESCRIPTION}"):
        DynamoNet.from_pretrained(tmp_path)
    with_description()
    weights = tmp_path / WEIGHTS
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match="damaged"):
        DynamoNet.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match="missing"):
        DynamoNet.from_pretrained(tmp_path)


def test_wrong_clips_are_refused_with_what_was_found() -> None:
    with pytest.raises(UserError, match=r"found \(8, 3, 32, 32\)"):
        DynamoNet(TINY)(torch.randn(8, 3, 32, 32))
    with pytest.raises(UserError, match="sample clips of 8 frames"):
        DynamoNet(TINY.model_copy(update={"num_classes": 2}))(torch.randn(2, 3, 16, 32, 32))


@pytest.mark.parametrize("kind", ["shared", "grid"])
@pytest.mark.parametrize("targets", ["within_clip", "future"])
@pytest.mark.slow
def test_the_whole_network_compiles_without_graph_breaks(kind: str, targets: str) -> None:
    torch._dynamo.reset()
    filters = TINY.filters.model_copy(update={"kind": kind})
    change = {"filters": filters, "targets": targets, "horizon": 2, "num_classes": 3}
    model = DynamoNet(TINY.model_copy(update=change)).eval()
    clip = torch.randn(2, 3, 8, 32, 32)
    found = torch.compile(model, fullgraph=True, backend="aot_eager")(clip)
    expected = model(clip)
    torch.testing.assert_close(found.predicted[0], expected.predicted[0])
    torch.testing.assert_close(found.logits, expected.logits)
    found.predicted[0].square().mean().backward()
    assert all(p.grad is not None for p in model.motion.parameters())


def test_the_attentive_pool_gives_what_its_attention_layer_gives() -> None:
    pool = AttentivePool(128)
    for parameter in pool.parameters():
        nn.init.normal_(parameter, std=0.2)
    features = torch.randn(3, 128, 2, 3, 3)
    cells = pool.norm_cells(features.flatten(2).transpose(1, 2))
    query = pool.query.repeat(3, 1, 1)
    read = query + pool.attend(query, cells, cells, need_weights=False)[0]
    wanted = (read + pool.mlp(pool.norm_read(read))).squeeze(1)
    torch.testing.assert_close(pool(features), wanted, rtol=1e-4, atol=1e-4)
