"""Forms of a 3D convolution: the same sum, computed in another way. Weights keep their shape."""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOLERANCE = 0.05  # relative error of a gradient; bf16 rounding alone gives about 0.004
_SCALES = tuple(2.0**power for power in range(16, -1, -1))  # as torch's GradScaler begins


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


class FoldedConv3d(nn.Conv3d):
    """A convolution of strides (1, 2, 2) on cells of 2 x 2 pixels: 7 x 7 taps of 3 channels become
    4 x 4 of 12, those that stand outside the kernel being zero. See `foldable`.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        if torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))  # half as much to move
        time, *reach = (side // 2 for side in self.kernel_size)
        cells = [side // 2 + 1 for side in self.kernel_size[1:]]
        pads: list[int] = []  # of the pixels; before and after, the last side first
        around: list[int] = []  # of the kernel, so that it begins and ends with a cell
        for size, most, count in zip(input.shape[-2:], reach, cells, strict=True):
            before = most + most % 2
            pads = [before, 2 * (-(-size // 2) - 1 + count) - size - before, *pads]
            around = [most % 2, 1 - most % 2, *around]
        pixels, weight = F.pad(input, pads), F.pad(self.weight, around)
        pixels = pixels.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))  # B, C, T, h, 2, w, 2
        folded = pixels.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).permute(0, 4, 1, 2, 3)
        weight = weight.unflatten(4, (-1, 2)).unflatten(3, (-1, 2))
        kernel = weight.permute(0, 1, 4, 6, 2, 3, 5).flatten(1, 3)
        return F.conv3d(folded, kernel, self.bias, 1, (time, 0, 0))


def foldable(layer: nn.Conv3d) -> bool:
    """Tells whether a convolution can be run in the folded form."""
    half = tuple(side // 2 for side in layer.kernel_size)
    odd = all(side % 2 for side in layer.kernel_size)
    plain = layer.groups == 1 and layer.dilation == (1, 1, 1) and layer.padding_mode == "zeros"
    return odd and plain and layer.stride == (1, 2, 2) and layer.padding == half


FORMS: dict[str, type[nn.Conv3d]] = {
    "plain": nn.Conv3d,
    "folded": FoldedConv3d,
    "padded": TimePaddedConv3d,
    "fp32": FullPrecisionConv3d,
}


def take(forms: Mapping[str, str], model: nn.Module) -> None:
    """Gives some convolutions of a model, by their names, a form in place."""
    for name, form in forms.items():
        model.get_submodule(name).__class__ = FORMS[form]


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
