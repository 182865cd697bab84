"""Other people's weights as a trunk: the same features as the network that they come from."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

from dynamonet.errors import UserError
from dynamonet.model.config import (
    PIXEL_SCALES,
    FilterConfig,
    ModelConfig,
    NetworkConfig,
    PixelScale,
    TrunkConfig,
)
from dynamonet.model.network import DynamoNet, Output
from dynamonet.training.start import transfer
from dynamonet.video.transforms import MEAN, STD
from finetune.pretrained.convert import ForeignWeights, convert
from finetune.pretrained.load import (
    find_pretrained,
    pretrained_config,
    pretrained_weights,
)
from finetune.settings import FinetuneSettings
from tests.conftest import moving_frames

State = dict[str, Tensor]


def random_state(shapes: dict[str, tuple[int, ...]]) -> State:
    """Returns weights and statistics at random, sized so that activations stay near 1."""
    make = torch.Generator().manual_seed(0)
    state: State = {}
    for key, shape in shapes.items():
        if len(shape) > 1:
            state[key] = torch.randn(shape, generator=make) * (2 / math.prod(shape[1:])) ** 0.5
        elif key.endswith("num_batches_tracked"):
            state[key] = torch.tensor(7)
        elif key.endswith(("running_var", "weight")):
            state[key] = torch.rand(shape, generator=make) / 2 + 0.5
        else:
            state[key] = torch.rand(shape, generator=make) / 2 - 0.25
    return state


def randomised(build: Callable[[], nn.Module]) -> tuple[Any, State]:
    """Builds a network with random weights and statistics, without its own slow start."""
    with torch.device("meta"):
        net = build()
    state = random_state({key: value.shape for key, value in net.state_dict().items()})
    net.load_state_dict(state, assign=True)
    return net.eval(), state


def network_of(foreign: ForeignWeights, scale: PixelScale | None = None) -> DynamoNet:
    config = ModelConfig.of(foreign.model(scale, "file.pth"), reads="features")
    model = DynamoNet(config)
    assert transfer(model, foreign.weights(config), 1.0).share == 1
    return model.eval()


def features(foreign: ForeignWeights, clip: Tensor, scale: PixelScale | None = None) -> Tensor:
    """Returns what our network makes of a clip (B, 3, T, H, W) in [0, 1]."""
    output: Output = network_of(foreign, scale)((clip - MEAN) / STD, predict_frames=False)
    assert output.dmr.shape[1] == 0, "filters that start at random describe nothing"
    return output.features


def pixels(frames: int, side: int = 64) -> Tensor:
    """Returns a moving clip (1, 3, T, H, W) in [0, 1]."""
    clip = torch.from_numpy(moving_frames(frames, side, side)).permute(3, 0, 1, 2)
    return clip[None].float() / 255


def scaled(clip: Tensor, scale: PixelScale) -> Tensor:
    """Normalises a clip in [0, 1] as a network's makers do."""
    mean, std = (torch.tensor(values)[:, None, None, None] for values in PIXEL_SCALES[scale])
    return (clip - mean) / std


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())
    assert float(theirs.std()) > 1e-3


def resnet(state: State, x: Tensor, groups: int = 1, *, pool: bool = True) -> Tensor:
    """Runs weights under torchvision's 2D and Hara's 3D names."""
    dims = state["layer1.0.conv1.weight"].ndim - 2
    conv = F.conv2d if dims == 2 else F.conv3d

    def layer(name: str, norm: str, x: Tensor, **how: object) -> Tensor:
        x = conv(x, state[f"{name}.weight"], **how)  # type: ignore[arg-type]
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return F.batch_norm(x, mean, var, state[f"{norm}.weight"], state[f"{norm}.bias"])

    x = layer("conv1", "bn1", x, stride=2 if dims == 2 else (1, 2, 2), padding=3).relu()
    if pool:
        x = (F.max_pool2d if dims == 2 else F.max_pool3d)(x, 3, 2, 1)
    names = {key.rpartition(".conv1.")[0] for key in state if key.startswith("layer")}
    for name in sorted(names - {""}, key=lambda text: [int(n) for n in text[5:].split(".")]):
        stride = 2 if name.endswith(".0") and not name.startswith("layer1") else 1
        deep = f"{name}.conv3.weight" in state
        if deep:
            y = layer(f"{name}.conv1", f"{name}.bn1", x).relu()
            how = {"stride": stride, "padding": 1, "groups": groups}
            y = layer(f"{name}.conv2", f"{name}.bn2", y, **how).relu()
            y = layer(f"{name}.conv3", f"{name}.bn3", y)
        else:
            y = layer(f"{name}.conv1", f"{name}.bn1", x, stride=stride, padding=1).relu()
            y = layer(f"{name}.conv2", f"{name}.bn2", y, padding=1)
        if f"{name}.downsample.0.weight" in state:
            x = layer(f"{name}.downsample.0", f"{name}.downsample.1", x, stride=stride)
        elif stride == 2:  # type A: sampled, and filled up with channels of zeros
            x = x[:, :, ::2, ::2, ::2]
            x = torch.cat([x, x.new_zeros(1, y.shape[1] - x.shape[1], *x.shape[2:])], 1)
        x = (x + y).relu()
    return x


def resnet_state(
    width: int, blocks: tuple[int, ...], dims: int, *, grouped: bool = False, type_a: bool = False
) -> State:
    """Returns random weights under torchvision's and Hara's names; [3, ...] blocks are deep."""
    shapes: dict[str, tuple[int, ...]] = {}

    def layer(conv: str, norm: str, outputs: int, inputs: int, side: int) -> None:
        shapes[f"{conv}.weight"] = (outputs, inputs, *[side] * dims)
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{leaf}"] = (outputs,)

    layer("conv1", "bn1", width, 3, 7)
    deep, inputs = blocks[0] > 2, width
    for stage, count in enumerate(blocks):
        outputs = width * 2**stage * (4 if deep else 1)
        inner = outputs // (2 if grouped else 4) if deep else outputs
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            if deep:
                layer(f"{name}.conv1", f"{name}.bn1", inner, inputs, 1)
                layer(f"{name}.conv2", f"{name}.bn2", inner, inner // (32 if grouped else 1), 3)
                layer(f"{name}.conv3", f"{name}.bn3", outputs, inner, 1)
            else:
                layer(f"{name}.conv1", f"{name}.bn1", outputs, inputs, 3)
                layer(f"{name}.conv2", f"{name}.bn2", outputs, outputs, 3)
            if inputs != outputs and not type_a:
                layer(f"{name}.downsample.0", f"{name}.downsample.1", outputs, inputs, 1)
            inputs = outputs
    shapes["fc.weight"], shapes["fc.bias"] = (5, inputs), (5,)
    return random_state(shapes)


@torch.no_grad()
def test_an_image_network_gives_a_still_clip_its_picture_s_features_at_every_step() -> None:
    net, state = randomised(models.resnet18)
    foreign = convert(state, "file.pth")
    assert set(foreign.others) == {"fc.weight", "fc.bias"}
    picture = pixels(1)
    ours = features(foreign, picture.expand(-1, -1, 6, -1, -1))
    flat = scaled(picture, "imagenet")[:, :, 0]
    assert_same(resnet(state, flat), net_features(net, flat))  # for the tests below
    assert ours.shape[2] == 3
    assert_same(ours, net_features(net, flat)[:, :, None].expand_as(ours))


def net_features(net: Any, x: Tensor) -> Tensor:
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        x = net.get_submodule(name)(x)
    return x


@torch.no_grad()
def test_an_image_network_overlooks_no_frame_of_a_clip() -> None:
    trunk = network_of(convert(resnet_state(8, (1, 1, 1, 1), 2), "file.pth")).trunk
    clip = pixels(5, 32)
    seen = trunk(clip)
    for frame in range(5):
        changed = clip.clone()
        changed[:, :, frame] = 1.5 - changed[:, :, frame]
        assert not torch.equal(trunk(changed), seen)


@torch.no_grad()
@pytest.mark.parametrize(("width", "grouped"), [(8, False), (16, True)])
def test_bottlenecks_and_groups_give_a_picture_s_features_too(width: int, grouped: bool) -> None:
    state = resnet_state(width, (3, 4, 6, 3), 2, grouped=grouped)
    foreign = convert(state, "file.pth")
    trunk = foreign.network.trunk
    assert trunk.kind == ("resnext" if grouped else "resnet") and trunk.depth == 50
    picture = pixels(1)
    ours = features(foreign, picture.expand(-1, -1, 4, -1, -1))
    theirs = resnet(state, scaled(picture, "imagenet")[:, :, 0], 32 if grouped else 1)
    assert_same(ours[:, :, 0], theirs)


@torch.no_grad()
@pytest.mark.parametrize("scale", ["hara_2017", "hara_2020"])
@pytest.mark.parametrize(
    ("width", "blocks", "more"),
    [
        (8, (1, 1, 1, 1), {}),
        (8, (2, 2, 2, 2), {"type_a": True}),
        (16, (3, 4, 6, 3), {"grouped": True}),
    ],
)
def test_hara_s_networks_keep_their_features_on_the_scale_that_is_named(
    width: int, blocks: tuple[int, ...], more: dict[str, bool], scale: PixelScale
) -> None:
    state = resnet_state(width, blocks, 3, **more)
    clip = pixels(8, 48)
    state["bn1.running_var"] *= scaled(clip, scale).var()  # so that what follows is near 1
    foreign = convert({f"module.{key}": value for key, value in state.items()}, "file.pth")
    theirs = resnet(state, scaled(clip, scale), 32 if more.get("grouped") else 1)
    assert_same(features(foreign, clip, scale), theirs)


def test_a_scale_that_the_file_does_not_tell_must_be_named() -> None:
    foreign = convert(resnet_state(8, (1, 1, 1, 1), 3), "file.pth")
    with pytest.raises(UserError, match=r"give --pixel_scale hara_2017 or hara_2020"):
        foreign.model(None, "file.pth")


@torch.no_grad()
@pytest.mark.parametrize("name", ["r3d_18", "mc3_18", "r2plus1d_18"])
def test_torchvision_s_video_networks_keep_their_features(name: str) -> None:
    net, state = randomised(getattr(models.video, name))
    foreign = convert({f"module.{key}": value for key, value in state.items()}, "file.pth")
    assert str(foreign) == f"torchvision's {name}"
    assert set(foreign.others) == {"module.fc.weight", "module.fc.bias"}
    clip = pixels(8, 32)
    net.avgpool = net.fc = nn.Identity()
    ours = features(foreign, clip)
    assert_same(ours.flatten(1), net(scaled(clip, "kinetics")))
    assert_strides(network_of(foreign), clip, ours)


@torch.no_grad()
@pytest.mark.parametrize(
    "name", ["slow_r50", "c2d_r50", "i3d_r50", "csn_r101", "r2plus1d_r50", "x3d_s", "x3d_l"]
)
def test_pytorchvideo_s_networks_keep_their_features(name: str) -> None:
    from pytorchvideo.models import hub  # here, after dynamonet has hushed it

    net, state = randomised(getattr(hub, name))
    foreign = convert(state, "file.pyth")
    assert str(foreign) == f"pytorchvideo's {name.replace('x3d_s', 'x3d_m')}"
    clip = pixels(8, 64)
    net.blocks[-1] = nn.Identity()
    ours = features(foreign, clip)
    assert_same(ours, net((clip - MEAN) / STD))
    assert_strides(network_of(foreign), clip, ours)


@torch.no_grad()
def test_slowfast_keeps_the_features_of_both_paths() -> None:
    from pytorchvideo.models import hub

    net, state = randomised(hub.slowfast_r50)
    foreign = convert(state, "file.pyth")
    clip = pixels(32, 64)
    ours = features(foreign, clip)
    del net.blocks[5:]
    fast = (clip - MEAN) / STD
    at = torch.linspace(0, 31, 8).long()
    slow, fast = net([fast.index_select(2, at), fast])
    assert_same(ours[:, :2048], slow)
    assert_same(ours[:, 2048:].mean((2, 3, 4)), fast.mean((2, 3, 4)))
    assert_strides(network_of(foreign), clip, ours)
    with pytest.raises(UserError, match="SlowFast reads a multiple of 4 frames, found 6"):
        features(foreign, pixels(6, 64))


def assert_strides(model: DynamoNet, clip: Tensor, found: Tensor) -> None:
    """Checks what a trunk says of itself; the filters are laid out by it."""
    trunk = model.trunk
    sizes = (
        -(-clip.shape[2] // trunk.temporal_stride),
        *[clip.shape[3] // trunk.spatial_stride] * 2,
    )
    assert found.shape[1:] == (trunk.dim, *sizes)
    output: Output = model((clip - MEAN) / STD)
    assert output.predicted[0].shape[:3] == (1, 3, clip.shape[2])


@pytest.mark.parametrize("kind", ["videomae", "vjepa2"])
def test_encoders_of_transformers_keep_their_features(kind: str, tmp_path: Path) -> None:
    net = foundation(kind, tmp_path)
    clip = pixels(4, 32)
    found = find_pretrained(FinetuneSettings(pretrained=str(tmp_path)))
    assert found is not None and f"transformers' {kind}" in str(found.note)
    config = ModelConfig.of(pretrained_config(tmp_path), reads="features")
    assert (config.num_frames, config.frame_px, config.pixel_scale) == (4, 32, "imagenet")
    model = DynamoNet(config).eval()
    assert transfer(model, pretrained_weights(tmp_path, config), 1.0).share == 1
    with torch.no_grad():
        tokens = net(scaled(clip, "imagenet").transpose(1, 2)).last_hidden_state
        ours = model((clip - MEAN) / STD).features
    assert ours.shape == (1, 32, 2, 4, 4)
    assert_same(ours.flatten(2).transpose(1, 2), tokens)
    model((clip - MEAN) / STD).features.sum().backward()  # can be trained on
    with pytest.raises(UserError, match=r"reads clips of 32 px and a multiple of 2 frames"):
        model(pixels(4, 48))


def foundation(kind: str, folder: Path) -> nn.Module:
    """Saves a tiny encoder with random weights as its library does."""
    import transformers

    sizes: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "patch_size": 8,
    }
    if kind == "videomae":
        config: Any = transformers.VideoMAEConfig(
            num_frames=4, image_size=32, intermediate_size=64, **sizes
        )
        net: Any = transformers.VideoMAEForPreTraining(config)
        net.save_pretrained(folder)
        return net.videomae.eval()
    more: dict[str, Any] = {
        f"pred_{key}": value for key, value in sizes.items() if key != "patch_size"
    }
    config = transformers.VJEPA2Config(frames_per_clip=4, crop_size=32, **sizes, **more)
    net = transformers.VJEPA2Model(config)
    net.save_pretrained(folder)
    return net.encoder.eval()


def test_a_folder_that_transformers_did_not_save_whole_is_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    foundation("videomae", tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["videomae.encoder.layer.1.output.dense.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused = FinetuneSettings(pretrained=str(tmp_path))
    with pytest.raises(UserError, match=r"1 weights are missing, e.g. .*layer.1.output.dense"):
        find_pretrained(refused)
    (tmp_path / "model.safetensors").write_bytes(b"cut short")
    with pytest.raises(UserError, match="transformers cannot read it"):
        find_pretrained(refused)
    for text, said in (('{"model_type": "bert"}', "a model of type 'bert'"), ("{", "damaged")):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(UserError, match=said):
            find_pretrained(refused)


def test_the_architecture_follows_from_the_file() -> None:
    every = (1, 1, 1, 1)
    for name, found in (
        ("resnet34", TrunkConfig(depth=34, temporal_strides=every)),
        ("resnext50_32x4d", TrunkConfig(depth=50, kind="resnext", temporal_strides=every)),
    ):
        wanted = NetworkConfig(input="rgb", trunk=found, pixel_scale="imagenet")
        assert convert(zeros(name), "file.pth").model(None, "") == wanted
    deep = convert(resnet_state(4, (3, 4, 23, 3), 3), "file.pth").network.trunk
    assert deep == TrunkConfig(depth=101, width=4)


def zeros(name: str) -> State:
    with torch.device("meta"):
        net = models.get_model(name)
    return {key: torch.zeros(value.shape) for key, value in net.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnext101_32x8d", r"another network: .* has shape \(256, 64, 1, 1, 1\), expected \(128"),
        ("wide_resnet50_2", "another network"),
        ("resnet152", r"blocks \(3, 8, 36, 3\) a stage"),
        ("densenet121", r"unknown network \(features.conv0.weight \(64, 3, 7, 7\)"),
    ],
)
def test_other_networks_are_refused_by_name(name: str, said: str) -> None:
    with pytest.raises(UserError, match=rf"(?s)^file.pth: .*{said}.*Understood are\n.*Hara"):
        convert(zeros(name), "file.pth")


def test_known_names_with_something_more_or_less_inside_are_another_network() -> None:
    state = resnet_state(8, (1, 1, 1, 1), 2)
    with pytest.raises(UserError, match=r"another network: .*\.se\.fc1\.weight has no place"):
        convert({**state, "layer1.0.se.fc1.weight": torch.zeros(1)}, "file.pth")
    with pytest.raises(UserError, match=r"stem\.norm\.running_var is missing"):
        convert({k: v for k, v in state.items() if k != "bn1.running_var"}, "file.pth")
    video = resnet_state(8, (1, 1, 1, 1), 3)
    del video["layer3.0.downsample.0.weight"]  # of one stage only: damaged, not type A
    with pytest.raises(UserError, match=r"branch1_conv\.weight is missing"):
        convert(video, "file.pth")
    state["layer2.0.conv1.weight"][0] = torch.nan
    with pytest.raises(UserError, match=r"NaN or infinite"):
        convert(state, "file.pth")


@pytest.mark.parametrize(
    ("suffix", "wrap", "prefix"),
    [
        (".pth", None, ""),
        (".pth", "state_dict", "module."),
        (".pyth", "model_state", ""),
        (".bin", "model", "backbone."),
        (".pt", "state_dict", "module.encoder_q."),
        (".safetensors", None, "encoder."),
    ],
)
def test_a_file_is_read_however_it_is_wrapped(
    suffix: str, wrap: str | None, prefix: str, tmp_path: Path
) -> None:
    state = resnet_state(8, (1, 1, 1, 1), 2)
    named = {prefix + key: value for key, value in state.items()}
    file = tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        save_file(named, file)
    else:
        torch.save({wrap: named, "epoch": 3} if wrap else named, file)
    found = find_pretrained(FinetuneSettings(pretrained=str(file)))
    assert found is not None and found.folder == file and found.run_id is None
    assert found.note is not None and "torchvision's 2D ResNet (resnet-10, width 8)" in found.note
    model = DynamoNet(pretrained_config(file))
    report = transfer(model, pretrained_weights(file, model.config), 1.0)
    assert report.share == 1 and report.fresh == ["motion"]
    assert report.left == [f"{prefix}fc.bias", f"{prefix}fc.weight"]
    trunk = f"{report.wanted['trunk']:,}"
    assert f"trunk {trunk} of {trunk} values\n" in str(report) and "motion fresh" in str(report)
    assert f"2 tensors not taken, e.g. {prefix}fc.bias" in str(report)
    kernel = model.trunk.get_submodule("stages.3.res_blocks.0.branch2.3").weight
    assert torch.equal(kernel[:, :, 1], state["layer4.0.conv2.weight"])  # type: ignore[index]
    assert not kernel[:, :, ::2].any()  # type: ignore[index]


def test_a_given_model_takes_what_fits(tmp_path: Path) -> None:
    file = tmp_path / "weights.pth"
    torch.save(resnet_state(8, (1, 1, 1, 1), 2), file)
    small: Any = {"frame_px": 32, "num_frames": 8, "input": "rgb"}
    small["filters"] = FilterConfig(kind="shared")
    for gates in ("stage", "block"):
        trunk = TrunkConfig(depth=10, width=8, stc=gates)
        model = DynamoNet(ModelConfig(trunk=trunk, **small))
        report = transfer(model, pretrained_weights(file, model.config), 0.5)
        assert not report.misshapen and not report.unexpected
        assert report.missing and all("_gate." in key for key in report.missing)
    wide = ModelConfig(trunk=TrunkConfig(depth=10, width=16), **small)
    with pytest.raises(UserError, match=r"do not fit this model: 0% \(trunk .* misshapen, e.g\."):
        transfer(DynamoNet(wide), pretrained_weights(file, wide), 0.5)
    with pytest.raises(UserError, match=r"model.input=rgb, and this model's is rgb_diff"):
        pretrained_weights(file, wide.model_copy(update={"input": "rgb_diff"}))


def test_files_that_cannot_be_read_say_why(tmp_path: Path) -> None:
    def refused(name: str) -> str:
        with pytest.raises(UserError) as error:
            find_pretrained(FinetuneSettings(pretrained=str(tmp_path / name)))
        return str(error.value)

    state = resnet_state(4, (1, 1, 1, 1), 2)
    torch.save({"state_dict": state, "args": argparse.Namespace(lr=1)}, tmp_path / "code.pth")
    told = refused("code.pth")
    assert "holds argparse.Namespace besides numbers" in told and "weights_only=False" in told
    torch.save(state, tmp_path / "cut.pth")
    (tmp_path / "cut.pth").write_bytes((tmp_path / "cut.pth").read_bytes()[:5000])
    assert "damaged" in refused("cut.pth")
    (tmp_path / "page.safetensors").write_text("<html>not found</html>")
    assert "damaged" in refused("page.safetensors")
    torch.save([1, 2], tmp_path / "list.pth")
    assert "no weights here but a list" in refused("list.pth")
    torch.save({"optimizer": {}, "epoch": 1}, tmp_path / "other.pth")
    assert "no weights here but a dict of optimizer, epoch" in refused("other.pth")
    assert "no such file" in refused("missing.pth")
