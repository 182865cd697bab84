"""A model for use elsewhere: `python -m dynamonet.export MODEL --output model.onnx`

    clip           (B, 3, T, H, W) float32, RGB in [0, 1]; T, H, W as the description says
    features       (B, D)     trunk features averaged over time and space
    dmr            (B, M)     the dynamic motion representation
    motion         (B, K)     named numbers of motion, whose names and units the description has
    probabilities  (B, N)     with a classifier: of the classes, in the description's order

Normalisation is inside the graph. The description, a JSON, travels in the file: as the metadata
entry `dynamonet` of an ONNX file, as the extra file `dynamonet.json` of a `torch.export` archive.
"""

from __future__ import annotations

import json
import logging
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from dynamonet.command_line import load, positional
from dynamonet.commands import command
from dynamonet.errors import UserError, need, run_entry
from dynamonet.model.files import locate, read_description
from dynamonet.model.network import DynamoNet
from dynamonet.model.numbers import NUMBERS
from dynamonet.settings import Settings
from dynamonet.storage import atomic_file, check_output
from dynamonet.video.transforms import MEAN, STD, normalise

METADATA = "dynamonet"  # name of the description in an ONNX file
EXTRA_FILE = "dynamonet.json"  # and in a torch.export archive
TOLERANCE = 1e-3  # largest difference that counts as the same, relative to the largest value


class Exportable(nn.Module):
    """The model as it is used elsewhere: no loss, no predicted frames, plain tensors."""

    def __init__(self, model: DynamoNet) -> None:
        super().__init__()
        self.model = model
        moves, said = model.config.tells_motion, model.classifier is not None
        there = {"features": True, "dmr": moves, "motion": moves, "probabilities": said}
        self.names = tuple(name for name, is_there in there.items() if is_there)

    def forward(self, clip: Tensor) -> tuple[Tensor, ...]:
        """Maps a clip (B, 3, T, H, W) in [0, 1] to the tensors that `names` lists."""
        clip = normalise(clip)
        output = self.model(clip, predict_frames=False)
        outputs: tuple[Tensor, ...] = (output.pooled,)
        if self.model.config.tells_motion:
            outputs += output.dmr, self.model.numbers_of(clip, output)
        return outputs if output.logits is None else (*outputs, output.logits.softmax(1))


@dataclass(frozen=True)
class Exported:
    """A file that was written, and how far its results lie from the model's own."""

    file: Path
    difference: float  # largest over all outputs, relative to each output's largest value


def export(place: str | Path, file: str | Path) -> Exported:
    """Writes a model as ONNX (`.onnx`) or `torch.export` archive (`.pt2`) and runs it once.

    The file appears under its name only after its results were found equal to the model's.

    Args:
        place: The model's folder, or its hub id.

    Raises:
        UserError: no model there, an unknown suffix, a missing library, or results that differ.
    """
    file = Path(file)
    kinds = {".onnx": (_write_onnx, _run_onnx), ".pt2": (_write_pt2, _run_pt2)}
    if file.suffix not in kinds:
        raise UserError(f"{file}: unknown kind {file.suffix!r}; expected .onnx or .pt2")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}")
    write, run = kinds[file.suffix]
    folder = locate(place)
    model = Exportable(DynamoNet.from_pretrained(folder))
    description = describe(read_description(folder), model)
    config = model.model.config
    shape = (3, config.num_frames, config.frame_px, config.frame_px)
    generator = torch.Generator().manual_seed(0)
    clips = torch.rand(3, *shape, generator=generator)
    with atomic_file(file) as growing, torch.no_grad():
        write(model, clips[:2], description, growing)
        results = run(growing, clips)  # another batch size than it was traced with
        difference = max(_difference(a, b) for a, b in zip(model(clips), results, strict=True))
        if not difference < TOLERANCE:
            raise UserError(
                f"{file}: not written, its results differ from the model's by {difference:.2g} "
                f"(at most {TOLERANCE:g} was expected); report this with the model's description"
            )
    return Exported(file, difference)


def describe(saved: dict[str, Any], model: Exportable) -> dict[str, Any]:
    """Returns what someone who has only the file must know: input, preprocessing, outputs."""
    config, clips = model.model.config, saved.get("clips", {})
    seconds = clips.get("stride_seconds")
    spacing = {"seconds": seconds} if seconds else {"frames": clips.get("stride_frames", 1)}
    canvas = clips.get("canvas_px", config.frame_px)
    return {
        "input": {
            "name": "clip",
            "shape": ["batch", 3, config.num_frames, config.frame_px, config.frame_px],
            "dtype": "float32",
            "colour": "RGB, 0 = black, 1 = white",
            "between_frames": spacing,
            "crop": f"largest centred square, scaled to {canvas} px, of which the middle "
            f"{min(config.frame_px, canvas)} px scaled to {config.frame_px} px",
            "normalisation": f"inside: (clip - {MEAN}) / {STD}",
        },
        "outputs": list(model.names),
        "motion": [asdict(number) for number in NUMBERS] if "motion" in model.names else [],
        "classes": saved.get("classes", []),
        "model": saved["model"],
        "run": saved.get("run"),
    }


def read_exported(file: Path) -> dict[str, Any]:
    """Reads the description inside an exported file."""
    if file.suffix == ".onnx":
        return json.loads(_onnx_session(file).get_modelmeta().custom_metadata_map[METADATA])
    extra = {EXTRA_FILE: ""}
    torch.export.load(file, extra_files=extra)
    return json.loads(extra[EXTRA_FILE])


def _write_pt2(model: Exportable, clip: Tensor, description: dict[str, Any], file: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (clip,), dynamic_shapes=({0: batch},))
    torch.export.save(program, file, extra_files={EXTRA_FILE: json.dumps(description)})


def _run_pt2(file: Path, clip: Tensor) -> tuple[Tensor, ...]:
    return torch.export.load(file).module()(clip)


def _write_onnx(model: Exportable, clip: Tensor, description: dict[str, Any], file: Path) -> None:
    _need("onnxscript")
    logging.getLogger("onnxscript").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the exporter's own internals
        program = torch.onnx.export(
            model,
            (clip,),
            dynamo=True,
            input_names=["clip"],
            output_names=list(model.names),
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(description)
    program.save(file)


def _run_onnx(file: Path, clip: Tensor) -> tuple[Tensor, ...]:
    outputs = _onnx_session(file).run(None, {"clip": clip.numpy()})
    return tuple(torch.from_numpy(value) for value in outputs)


def _onnx_session(file: Path) -> Any:
    return _need("onnxruntime").InferenceSession(file, providers=["CPUExecutionProvider"])


def _need(library: str) -> Any:
    return need(library, "onnx", f"ONNX needs {library}, which is not installed")


def _difference(wanted: Tensor, given: Tensor) -> float:
    return float((wanted - given).abs().max() / wanted.abs().max().clamp(min=1e-6))


class ExportSettings(Settings):
    """Writes a model for use elsewhere, preprocessing and labels inside."""

    model: str = positional("Folder of a model, or its Hugging Face hub id.")
    output: Path = Field(description="FILE.onnx or FILE.pt2 to write.")
    overwrite: bool = Field(default=False, description="Replace an output that is there already.")


def main(argv: list[str]) -> Exported:
    """Exports a model as the command line says."""
    settings = load(
        ExportSettings,
        argv,
        prog=command("export"),
    )
    check_output("--output", settings.output, overwrite=settings.overwrite)
    done = export(settings.model, settings.output)
    print(f"{done.file}: {done.file.stat().st_size / 1e6:.1f} MB")
    print(f"its results differ from the model's by at most {done.difference:.1g} (relative)")
    for key, value in read_exported(done.file)["input"].items():
        print(f"  {key}: {value}")
    return done


if __name__ == "__main__":
    run_entry(main)
