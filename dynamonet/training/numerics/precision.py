"""Which number format the trunk computes in, and how each layer must be run to be right in it.

bf16 convolution gives wrong weight gradients on some CPUs for some shapes, silently (measured: a
temporal kernel of 3 on 2 frames gives a relative error of 1, with infinities). So before the first
step every 3D convolution of the model is run forward and backward on its own shape in the chosen
format and in fp32. A layer that disagrees takes the first form that does not:

    plain     as it is
    folded    2 x 2 pixels as channels: the same sum of more channels, fewer taps; strides (1, 2, 2)
    padded    time is padded before the convolution: the same sum, another kernel (measured: right)
    fp32      out of the chosen format

The convolution of the pixels has 3 channels, too few for matrix units. So it is timed, and takes
the fastest form that is right: folded on CPUs with AMX (measured: 148 ms instead of 336), plain on
those with AVX512-BF16 alone (60 and 67), fp32 on GPUs with TF32 (an H100: 8.7 instead of 17.7).
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch
from torch import Tensor, nn

from dynamonet.digest import digest_of_bytes
from dynamonet.errors import UserError
from dynamonet.training.distributed.rank import Rank
from dynamonet.training.numerics.forms import (
    FORMS,
    FullPrecisionConv3d,
    foldable,
    gradients_agree,
    take,
)
from dynamonet.training.numerics.speed import seconds_of, seconds_of_network

CHANNELS = 8  # of 16 bits, that a kernel for matrix units takes at least
GAIN = 0.9  # of the plain form's time, that another must stay below
_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class Precision:
    """The format chosen, and the layers that are wrong in it as they are."""

    dtype: torch.dtype
    device_type: str
    forms: dict[str, str] = field(default_factory=dict)  # layer -> form, where plain is wrong
    faster: dict[str, str] = field(default_factory=dict)  # layer -> form, where plain is slower

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
        said = {"fp32": "in TF32", "folded": "folded"}
        faster = (f", {layer} {said[form]}" for layer, form in self.faster.items())
        chosen = self.format + "".join(faster)
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
    """Chooses the format, and each convolution's form in it, which it takes in place.

    Args:
        clip: A batch in the very shape of training, on the rank's device: the same layer was seen
            to be right for 1 clip and wrong for 4.
        wanted: auto, bf16, fp16 or fp32; auto = on CPUs that multiply bf16, the one in which the
            network is faster.

    Raises:
        UserError: some layers have wrong gradients and `wrong_gradients` is refuse.
    """
    dtype, plain = wanted_dtype(wanted, rank.device), Precision(torch.float32, rank.device.type)
    if dtype == torch.float32:
        return plain
    forms: dict[str, str] = {}
    order = list(FORMS)
    for own in rank.gather(right_forms(model, clip, dtype)):  # ranks may differ in hardware
        for layer, form in cast("dict[str, str]", own).items():
            forms[layer] = order[max(order.index(form), order.index(forms.get(layer, form)))]
    layers = dict(_convolutions(model))
    faster = {n: f for n, f in forms.items() if f in _rivals(layers[n], rank.device)}
    wrong = {name: form for name, form in forms.items() if name not in faster}
    if wrong and wrong_gradients == "refuse":
        raise UserError(
            f"{dtype} gives wrong weight gradients on this machine in {', '.join(wrong)}. "
            "Set precision to fp32, or wrong_gradients to repair."
        )
    for name, layer in layers.items():
        if type(layer) is FullPrecisionConv3d:  # as `forward_precision` left it
            forms.setdefault(name, "plain")
    if wanted == "auto" and clip.device.type == "cpu":
        is_faster = rank.broadcast(rank.is_main and _is_faster(model, forms, clip, dtype))
        if not is_faster:
            return plain
    take(forms, model)
    return Precision(dtype, rank.device.type, wrong, faster)


def _is_faster(model: nn.Module, forms: dict[str, str], clip: Tensor, dtype: torch.dtype) -> bool:
    """Tells whether a network is faster in `dtype`, its convolutions in these forms, than in fp32.

    Remembered as forms are.
    """

    def find() -> str:
        exact = seconds_of_network(model, {}, clip, torch.float32)
        return "faster" if seconds_of_network(model, forms, clip, dtype) < exact else "slower"

    network = digest_of_bytes(f"{model} {tuple(clip.shape)} {torch.get_num_threads()}".encode())
    about = f"{dtype} over fp32 {network}"
    return _remembered(_read_cache(), about, clip.device, ("faster", "slower"), find) == "faster"


def forward_precision(model: nn.Module, wanted: str, device: torch.device) -> Precision:
    """Chooses the format of a model that is run forward alone; keeps out what is faster in fp32.

    Args:
        wanted: auto, bf16, fp16 or fp32.
    """
    dtype, faster = wanted_dtype(wanted, device), dict[str, str]()
    if dtype != torch.float32:
        convolutions = _convolutions(model)
        faster = {name: "fp32" for name, c in convolutions if "fp32" in _rivals(c, device)}
    take(faster, model)
    return Precision(dtype, device.type, faster=faster)


def has_tf32(device: torch.device) -> bool:
    """Tells whether a device multiplies fp32 in units for matrices."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def wanted_dtype(wanted: str, device: torch.device) -> torch.dtype:
    """Returns the number format that a setting means on a device; auto = the fastest."""
    return _DTYPES[fastest_format(device) if wanted == "auto" else wanted]


def right_forms(model: nn.Module, clip: Tensor, dtype: torch.dtype) -> dict[str, str]:
    """Returns the 3D convolutions that are not to be run plainly in `dtype`, and in which form.

    Each distinct shape is looked at once, and remembered for this hardware and these versions.
    """
    known, forms, layers = _read_cache(), dict[str, str](), dict(_convolutions(model))
    for name, shape in _conv_inputs(model, clip).items():
        layer, rivals = layers[name], _rivals(layers[name], clip.device)
        find = partial(_first_right, layer, rivals, shape, clip.device, dtype)
        about = " ".join((f"{dtype} {layer} on {shape}", *rivals))
        form = _remembered(known, about, clip.device, tuple(FORMS), find)
        if form != "plain":
            forms[name] = form
    return forms


def _rivals(layer: nn.Conv3d, device: torch.device) -> tuple[str, ...]:
    """Returns the forms that may be faster than the plain one."""
    if layer.in_channels >= CHANNELS:
        return ()
    folds = ("folded",) if foldable(layer) else ()
    return (*folds, "fp32") if has_tf32(device) else folds


def _first_right(
    layer: nn.Conv3d,
    rivals: tuple[str, ...],
    shape: tuple[int, ...],
    device: torch.device,
    dtype: torch.dtype,
) -> str:
    """Returns the first form with right gradients: the fastest, where there are rivals."""
    order = ["plain"]
    if rivals:
        seconds = {f: seconds_of(layer, f, shape, device, dtype) for f in ("plain", *rivals)}
        seconds["plain"] *= GAIN
        order = sorted(seconds, key=seconds.__getitem__)
    order += [form for form in ("padded", "fp32") if form not in order]
    right = (form for form in order if gradients_agree(layer, form, shape, device, dtype))
    return next(right, "fp32")


def _conv_inputs(model: nn.Module, clip: Tensor) -> dict[str, tuple[int, ...]]:
    """Returns the input shape of each convolution in that format, from an fp32 forward pass."""
    shapes: dict[str, tuple[int, ...]] = {}
    hooks = []
    for name, layer in _convolutions(model):

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


def _convolutions(model: nn.Module) -> Iterator[tuple[str, nn.Conv3d]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv3d))


def fastest_format(device: torch.device) -> str:
    """Returns the format that a device multiplies fastest and that trains well."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return "bf16" if _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    """Tells whether the CPU multiplies bf16 in hardware; in software it is slower than fp32."""
    return _cpu_has("avx512_bf16") or _cpu_has("amx_tile")


def _cpu_has(kind: str) -> bool:
    check = getattr(torch.cpu, f"_is_{kind}_supported", None)
    return check is not None and check()


def hardware(device: torch.device) -> str:
    """Returns what decides how fast a device multiplies, in words."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} cuDNN {torch.backends.cudnn.version()}"
    amx = " AMX" if _cpu_has("amx_tile") else ""
    capability = torch.backends.cpu.get_cpu_capability()
    return f"{platform.machine()} {capability} bf16={_cpu_has_bf16()}{amx}"


def _remembered(
    known: dict[str, str],
    about: str,
    device: torch.device,
    answers: tuple[str, ...],
    find: Callable[[], str],
) -> str:
    """Returns what is known of this hardware and these versions; else finds it, and keeps it."""
    key = f"{hardware(device)} torch {torch.__version__} {about}"
    if known.get(key) not in answers:
        known[key] = find()
        _write_cache(known)
    return known[key]


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
