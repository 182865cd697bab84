from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime
import pytest
import torch

from dynamonet.errors import UserError
from dynamonet.export import export, main, read_exported
from dynamonet.model.config import ModelConfig, TrunkConfig
from dynamonet.model.network import DynamoNet
from dynamonet.model.numbers import NUMBERS
from dynamonet.video.transforms import MEAN, STD

TINY = ModelConfig(
    num_frames=8,
    frame_px=32,
    trunk=TrunkConfig(
        depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1), stc="block"
    ),
)
FACTS = {"classes": ["a", "b", "c"], "clips": {"stride_seconds": 0.1, "canvas_px": 48}}


def saved(folder: Path, num_classes: int | None = 3) -> DynamoNet:
    torch.manual_seed(0)
    model = DynamoNet(TINY.model_copy(update={"num_classes": num_classes})).eval()
    torch.nn.init.normal_(model.motion.generator.linear.weight)  # type: ignore[union-attr]
    model.facts = FACTS
    model.save_pretrained(folder)
    return model


def test_a_torch_archive_gives_the_models_own_results(tmp_path: Path) -> None:
    model = saved(tmp_path / "model")
    done = export(tmp_path / "model", tmp_path / "model.pt2")
    assert done.difference < 1e-5
    program = torch.export.load(tmp_path / "model.pt2").module()
    clip = torch.rand(5, 3, 8, 32, 32)
    features, dmr, motion, probabilities = program(clip)
    with torch.no_grad():
        own = model((clip - MEAN) / STD)
    assert own.logits is not None
    torch.testing.assert_close(features, own.pooled)
    torch.testing.assert_close(dmr, own.dmr)
    numbers = model.motion_numbers((clip - MEAN) / STD, own.filters)
    torch.testing.assert_close(motion, numbers)
    torch.testing.assert_close(probabilities, own.logits.softmax(1))


@pytest.mark.slow
def test_an_onnx_file_runs_elsewhere_and_says_how_to_feed_it(tmp_path: Path) -> None:
    model = saved(tmp_path / "model", num_classes=None)
    export(str(tmp_path / "model"), tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [value.name for value in session.get_outputs()] == ["features", "dmr", "motion"]
    clip = torch.rand(1, 3, 8, 32, 32)
    features, dmr, motion = session.run(None, {"clip": clip.numpy()})
    with torch.no_grad():
        own = model((clip - MEAN) / STD)
    numbers = model.motion_numbers((clip - MEAN) / STD, own.filters)
    for found, expected in ((features, own.pooled), (dmr, own.dmr), (motion, numbers)):
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-4)
    told = read_exported(tmp_path / "model.onnx")
    assert told["input"]["shape"] == ["batch", 3, 8, 32, 32]
    assert told["input"]["between_frames"] == {"seconds": 0.1}
    assert "scaled to 48 px, of which the middle 32 px" in told["input"]["crop"]
    assert told["outputs"] == ["features", "dmr", "motion"]
    assert [each["name"] for each in told["motion"]] == [each.name for each in NUMBERS]
    assert told["classes"] == ["a", "b", "c"]


def test_the_command_prints_what_it_wrote(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path / "model")
    main([str(tmp_path / "model"), "--output", str(tmp_path / "out.pt2")])
    shown = capsys.readouterr().out
    assert "out.pt2:" in shown and "differ" in shown and "RGB, 0 = black" in shown


@pytest.mark.slow
def test_results_that_differ_leave_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "model")
    module = sys.modules[export.__module__]
    run = module._run_pt2

    def wrong(file: Path, clip: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(value + 1 for value in run(file, clip))

    monkeypatch.setattr(module, "_run_pt2", wrong)
    with pytest.raises(UserError, match="not written, its results differ"):
        export(tmp_path / "model", tmp_path / "model.pt2")
    assert [file.name for file in tmp_path.iterdir()] == ["model"]


def test_what_cannot_be_exported_is_refused_with_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path / "model")
    with pytest.raises(UserError, match=r"expected \.onnx or \.pt2"):
        export(tmp_path / "model", tmp_path / "model.tflite")
    with pytest.raises(UserError, match="there is no folder"):
        export(tmp_path / "model", tmp_path / "nowhere" / "model.pt2")
    with pytest.raises(UserError, match="no model here"):
        export(tmp_path / "nothing", tmp_path / "model.pt2")
    (tmp_path / "there.pt2").touch()
    with pytest.raises(UserError, match=r"is there already.*--overwrite"):
        main([str(tmp_path), "--output", str(tmp_path / "there.pt2")])  # a run's folder is one, too
    assert main([str(tmp_path), "--output", f"{tmp_path}/there.pt2", "--overwrite"]).difference < 1
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"pip install 'dynamonet\[onnx\]'"):
        export(tmp_path / "model", tmp_path / "model.onnx")
