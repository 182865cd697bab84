"""Which number format the trunk computes in, and which layers must not.

bf16 convolution gives wrong weight gradients on some CPUs for some shapes, silently (measured: a
temporal kernel of 3 on 2 frames gives a relative error of 1, with infinities). So before the first
step every 3D convolution of the model is run forward and backward on its own shape in the chosen
format and in fp32; a layer that disagrees runs in fp32.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from dynamonet.training.ranks import Rank

TOLERANCE = 0.05  # relative error of a gradient; bf16 rounding alone gives about 0.004
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """The format chosen, and the layers that keep to fp32."""

    dtype: torch.dtype
    device_type: str
    kept_fp32: tuple[str, ...] = ()

    def autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device_type, self.dtype, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """Returns the loss scaler; it does nothing unless the format is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)

    def __str__(self) -> str:
        name = next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)
        kept = f"; wrong gradients, kept in fp32: {', '.join(self.kept_fp32)}"
        return name + (kept if self.kept_fp32 else "")


def choose_precision(model: nn.Module, clip: Tensor, wanted: str, rank: Rank) -> Precision:
    """Chooses the format and puts the layers that it breaks into fp32, in place.

    Args:
        clip: A batch of one clip in the shape of training, on the rank's device.
        wanted: auto, bf16, fp16 or fp32.
    """
    name = _fastest(rank.device) if wanted == "auto" else wanted
    dtype, kind = _DTYPES[name], rank.device.type
    if dtype == torch.float32:
        return Precision(dtype, kind)
    found = broken_layers(model, clip, dtype)
    broken = sorted({layer for layers in rank.gather(found) for layer in layers})  # type: ignore[attr-defined]
    for layer in broken:
        model.get_submodule(layer).__class__ = FullPrecisionConv3d
    return Precision(dtype, kind, tuple(broken))


class FullPrecisionConv3d(nn.Conv3d):
    """A 3D convolution that stays in fp32 under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


def broken_layers(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> list[str]:
    """Returns the names of the 3D convolutions whose gradients are wrong in `dtype`.

    Each distinct shape is checked once, and remembered for this hardware and these versions.
    """
    shapes = _conv_inputs(model, clip)
    file = _cache_file()
    known: dict[str, bool] = json.loads(file.read_text()) if file.is_file() else {}
    where = f"{_hardware(clip.device)} torch {torch.__version__} {dtype}"
    broken, learnt = [], False
    for name, shape in shapes.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv3d)
        key = f"{where} {layer} on {shape}"
        if key not in known:
            known[key], learnt = not gradients_agree(layer, shape, clip.device, dtype), True
        if known[key]:
            broken.append(name)
    if learnt:
        file.parent.mkdir(parents=True, exist_ok=True)
        growing = file.with_suffix(f".{os.getpid()}")
        growing.write_text(json.dumps(known, indent=0))
        growing.replace(file)
    return broken


def gradients_agree(
    layer: nn.Conv3d, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> bool:
    """Runs one convolution in `dtype` and in fp32 on random input and compares all gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device)
    x = x.contiguous(memory_format=torch.channels_last_3d)
    results = []
    for enabled in (False, True):
        given = x.clone().requires_grad_()
        weight = layer.weight.detach().clone().requires_grad_()
        with torch.autocast(device.type, dtype, enabled=enabled):
            out = nn.functional.conv3d(
                given, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups
            )
        out.float().square().sum().backward()
        results.append((out.detach().float(), given.grad, weight.grad))
    pairs = zip(results[0], results[1], strict=True)
    return all(_relative_error(a, b) < TOLERANCE for a, b in pairs)


def _relative_error(reference: Tensor | None, other: Tensor | None) -> float:
    assert reference is not None and other is not None
    error = (other.float() - reference).norm() / reference.norm().clamp(min=1e-12)
    return float(error) if torch.isfinite(error) else float("inf")


def _conv_inputs(model: nn.Module, clip: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the input shape of every 3D convolution, from one fp32 forward pass."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv3d):

            def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = tuple(args[0].shape)

            hooks.append(layer.register_forward_pre_hook(note))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(clip)
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return shapes


def _fastest(device: torch.device) -> str:
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Tells whether the CPU multiplies bf16 in hardware; in software it is slower than fp32."""
    checks = (
        getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile")
    )
    return any(check() for check in checks if check is not None)


def _hardware(device: torch.device) -> str:
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} cuDNN {torch.backends.cudnn.version()}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} bf16={_cpu_has_bf16()}"


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dynamonet" / "conv3d.json"
