"""Which number format the trunk computes in, and how each layer must be run to be right in it.

bf16 convolution gives wrong weight gradients on some CPUs for some shapes, silently (measured: a
temporal kernel of 3 on 2 frames gives a relative error of 1, with infinities). So before the first
step every 3D convolution of the model is run forward and backward on its own shape in the chosen
format and in fp32. A layer that disagrees takes the first form that does not:

    plain     as it is
    padded    time is padded before the convolution: the same sum, another kernel (measured: right)
    fp32      out of the chosen format

On GPUs that multiply fp32 as TF32, the stem stays in fp32 unasked: cuDNN has no kernel for matrix
units with 3 channels of 16 bits (measured on an H100: 8.7 ms instead of 17.7, of a step of 32).
"""

from __future__ import annotations

import copy
import json
import os
import platform
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.training.distributed.rank import Rank

TOLERANCE = 0.05  # relative error of a gradient; bf16 rounding alone gives about 0.004
CHANNELS = 8  # of 16 bits, that a kernel for matrix units takes at least
_SCALES = tuple(2.0**power for power in range(16, -1, -1))  # as torch's GradScaler begins
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


class TimePaddedConv3d(nn.Conv3d):
    """A 3D convolution whose padding in time is put there beforehand."""

    def forward(self, input: Tensor) -> Tensor:
        time = int(self.padding[0])
        padded = F.pad(input, (0, 0, 0, 0, time, time))
        padding = (0, int(self.padding[1]), int(self.padding[2]))
        return F.conv3d(
            padded, self.weight, self.bias, self.stride, padding, self.dilation, self.groups
        )


class FullPrecisionConv3d(nn.Conv3d):
    """A 3D convolution that stays in fp32 under autocast."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.float())


FORMS: dict[str, type[nn.Conv3d]] = {
    "plain": nn.Conv3d,
    "padded": TimePaddedConv3d,
    "fp32": FullPrecisionConv3d,
}


@dataclass(frozen=True)
class Precision:
    """The format chosen, and the layers that are wrong in it as they are."""

    dtype: torch.dtype
    device_type: str
    forms: dict[str, str] = field(default_factory=dict)  # layer -> padded or fp32
    faster: tuple[str, ...] = ()  # layers that are kept in fp32 for speed

    def autocast(self) -> torch.autocast:
        enabled = self.dtype != torch.float32
        return torch.autocast(self.device_type, self.dtype, enabled=enabled)

    def scaler(self) -> torch.amp.GradScaler:
        """Returns the loss scaler; it does nothing unless the format is fp16."""
        return torch.amp.GradScaler(self.device_type, enabled=self.dtype == torch.float16)

    @property
    def format(self) -> str:
        """bf16, fp16 or fp32."""
        return next(name for name, dtype in _DTYPES.items() if dtype == self.dtype)

    def __str__(self) -> str:
        chosen = self.format + "".join(f", {layer} in TF32" for layer in self.faster)
        if not self.forms:
            return chosen
        how = {"padded": "time padded beforehand", "fp32": "kept in fp32"}
        layers = [f"{layer} ({how[form]})" for layer, form in self.forms.items()]
        return f"{chosen}; wrong gradients corrected in {', '.join(layers)}"


def choose_precision(
    model: nn.Module,
    clip: Tensor,
    wanted: str,
    rank: Rank,
    wrong_gradients: Literal["repair", "refuse"] = "repair",
) -> Precision:
    """Chooses the format and repairs, in place, the layers that it breaks.

    Args:
        clip: A batch in the very shape of training, on the rank's device: the same layer was seen
            to be right for 1 clip and wrong for 4.
        wanted: auto, bf16, fp16 or fp32.

    Raises:
        UserError: some layers have wrong gradients and `wrong_gradients` is refuse.
    """
    chosen = forward_precision(model, wanted, rank.device)
    dtype = chosen.dtype
    if dtype == torch.float32:
        return chosen
    forms: dict[str, str] = {}
    order = list(FORMS)
    for own in rank.gather(right_forms(model, clip, dtype)):  # ranks may differ in hardware
        for layer, form in cast("dict[str, str]", own).items():
            forms[layer] = order[max(order.index(form), order.index(forms.get(layer, form)))]
    if forms and wrong_gradients == "refuse":
        raise UserError(
            f"{dtype} gives wrong weight gradients on this machine in {', '.join(forms)}. "
            "Set precision to fp32, or wrong_gradients to repair."
        )
    for layer, form in forms.items():
        model.get_submodule(layer).__class__ = FORMS[form]
    return replace(chosen, forms=forms)


def forward_precision(model: nn.Module, wanted: str, device: torch.device) -> Precision:
    """Chooses the format of a model that is run forward alone; keeps out what is faster in fp32.

    Args:
        wanted: auto, bf16, fp16 or fp32.
    """
    dtype = wanted_dtype(wanted, device)
    faster = () if dtype == torch.float32 else faster_in_fp32(model, device)
    for layer in faster:
        model.get_submodule(layer).__class__ = FullPrecisionConv3d
    return Precision(dtype, device.type, faster=faster)


def faster_in_fp32(model: nn.Module, device: torch.device) -> tuple[str, ...]:
    """Returns the 3D convolutions of few input channels, on devices that have TF32."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0):
        return ()
    layers = model.named_modules()
    return tuple(n for n, m in layers if isinstance(m, nn.Conv3d) and m.in_channels < CHANNELS)


def wanted_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the number format that a setting means on a device; auto = the fastest."""
    return _DTYPES[fastest_format(device) if wanted == "auto" else wanted]


def right_forms(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> dict[str, str]:
    """Returns the 3D convolutions that are wrong in `dtype` as they are, with a form that is right.

    Each distinct shape is checked once, and remembered for this hardware and these versions.
    """
    known = _read_cache()
    where = f"{hardware(clip.device)} torch {torch.__version__} {dtype}"
    forms, learnt = {}, False
    for name, shape in _conv_inputs(model, clip).items():
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Conv3d)
        key = f"{where} {layer} on {shape}"
        if known.get(key) not in FORMS:
            tried = (f for f in FORMS if gradients_agree(layer, f, shape, clip.device, dtype))
            known[key], learnt = next(tried, "fp32"), True
        if known[key] != "plain":
            forms[name] = known[key]
    if learnt:
        _write_cache(known)
    return forms


def gradients_agree(
    layer: nn.Conv3d, form: str, shape: tuple[int, ...], device: torch.device, dtype: torch.dtype
) -> bool:
    """Runs a convolution in one form in `dtype`, plainly in fp32, and compares all gradients.

    In fp16 the loss is scaled as in training: by the largest power of two with finite gradients.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(device)
    x = x.contiguous(memory_format=torch.channels_last_3d)

    def results(form: str, scale: float, *, enabled: bool) -> tuple[Tensor, Tensor, Tensor]:
        given, twin = x.clone().requires_grad_(), copy.deepcopy(layer).requires_grad_()
        twin.__class__ = FORMS[form]
        twin.zero_grad()
        with torch.autocast(device.type, dtype, enabled=enabled):
            out = twin(given)
        (scale * out.float().square().mean()).backward()
        assert given.grad is not None and twin.weight.grad is not None
        return out.detach().float(), given.grad / scale, twin.weight.grad / scale

    reference = results("plain", 1.0, enabled=False)
    scales = _SCALES if dtype == torch.float16 else (1.0,)
    tried = (results(form, scale, enabled=True) for scale in scales)
    finite = (found for found in tried if all(bool(torch.isfinite(t).all()) for t in found))
    own = next(finite, None)
    pairs = zip(reference, own, strict=True) if own else ()
    return own is not None and all(_relative_error(a, b) < TOLERANCE for a, b in pairs)


def _relative_error(reference: Tensor, other: Tensor) -> float:
    error = (other.float() - reference).norm() / reference.norm().clamp(min=1e-12)
    return float(error) if torch.isfinite(error) else float("inf")


def _conv_inputs(model: nn.Module, clip: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the input shape of each convolution in that format, from an fp32 forward pass."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv3d) and not isinstance(layer, FullPrecisionConv3d):

            def note(_: nn.Module, args: tuple[Tensor, ...], name: str = name) -> None:
                shapes[name] = (len(clip), *args[0].shape[1:])

            hooks.append(layer.register_forward_pre_hook(note))
    was_training = model.training
    model.eval()
    with torch.no_grad():
        model(clip[:1])
    model.train(was_training)
    for hook in hooks:
        hook.remove()
    return shapes


def fastest_format(device: torch.device) -> str:
    """Returns the format that a device multiplies fastest and that trains well."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Tells whether the CPU multiplies bf16 in hardware; in software it is slower than fp32."""
    checks = (
        getattr(torch.cpu, f"_is_{kind}_supported", None) for kind in ("avx512_bf16", "amx_tile")
    )
    return any(check() for check in checks if check is not None)


def hardware(device: torch.device) -> str:
    """Returns what decides how fast a device multiplies, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} cuDNN {torch.backends.cudnn.version()}"
    return f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()} bf16={_cpu_has_bf16()}"


def _cache_file() -> Path:
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "dynamonet" / "conv3d_forms.json"


def _read_cache() -> dict[str, str]:
    try:
        return dict(json.loads(_cache_file().read_text()))
    except (OSError, ValueError, TypeError):
        return {}  # missing or damaged: the check is made again


def _write_cache(known: dict[str, str]) -> None:
    file = _cache_file()
    growing = file.with_suffix(f".{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        growing.write_text(json.dumps(known, indent=0))
        growing.replace(file)
    except OSError:
        return  # a home that cannot be written costs the next run a few seconds
