"""Applying filters to frames: exact, with gradients written out where autograd's are slow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

STRETCH = 16  # pixels of a row in one matrix product. Source: measured, 8 to 28 are alike


def apply_filters(frames: Tensor, filters: Tensor, spacing: float | None = None) -> Tensor:
    """Applies a filter, or a grid of filters, to each frame.

        out[b, c, t, y, x] = sum over i, j of
            f[b, t, i*K + j] at (y, x) * frames[b, c, t, y + i - K//2, x + j - K//2]

    "f at (y, x)" interpolates bilinearly between cell centres; outside the frame its border pixels
    repeat. Exact first-order gradients for both arguments, in the dtype of `frames`, also under
    autocast. Cost: K*K multiply-adds a value; memory for K interpolated taps at a time.

    Args:
        frames: (B, C, T, H, W).
        filters: (B, T, K*K, gh, gw); gh = gw = 1 is one filter for the whole frame.
        spacing: Pixels from one filter to the next, the first standing half as far from the edge;
            None = spread evenly over the frame.

    Returns:
        (B, C, T, H, W), the dtype of `frames`.

    Raises:
        ValueError: the shapes do not belong together.
    """
    batch, _, num, _, _ = frames.shape
    side = round(filters.shape[2] ** 0.5)
    if filters.shape[:2] != (batch, num) or side * side != filters.shape[2] or side % 2 == 0:
        raise ValueError(
            f"filters {tuple(filters.shape)} do not fit frames {tuple(frames.shape)}: expected "
            f"({batch}, {num}, K*K with K odd, gh, gw)"
        )
    with torch.autocast(frames.device.type, enabled=False):  # sums of pixels, not of features
        if filters.shape[-2:] == (1, 1):
            return _ApplyShared.apply(frames, filters, side)  # type: ignore[no-any-return]
        return _ApplyGrid.apply(frames, filters, side, spacing)  # type: ignore[no-any-return]


class _ApplyShared(torch.autograd.Function):
    """One filter a frame: a depthwise convolution, whose batch is the colours.

    Its weight gradient is a correlation, here as matrix products of short stretches of rows:
    measured three times faster than the convolution's own (benchmarks/bench_model.py).
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, filters: Tensor, side: int) -> Tensor:
        batch, colours, num, height, width = frames.shape
        flat = frames.transpose(0, 1).reshape(colours, batch * num, height, width)
        padded = _pad(flat.contiguous(), side)
        kernels = filters.to(frames.dtype).reshape(-1, 1, side, side)
        ctx.save_for_backward(padded, kernels)
        ctx.shape, ctx.filters_dtype = frames.shape, filters.dtype
        out = F.conv2d(padded, kernels, groups=batch * num)
        return out.view(colours, batch, num, height, width).transpose(0, 1).contiguous()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the type
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        padded, kernels = ctx.saved_tensors
        batch, colours, num, height, width = ctx.shape
        side = kernels.shape[-1]
        grad = grad_outputs[0].transpose(0, 1).reshape(colours, batch * num, height, width)
        grad_frames = grad_filters = None
        if ctx.needs_input_grad[0]:
            wide = conv2d_input(padded.shape, kernels, grad, groups=batch * num)
            folded = _unpad(wide, side).view(colours, batch, num, height, width)
            grad_frames = folded.transpose(0, 1)
        if ctx.needs_input_grad[1]:
            overlap = _correlate(grad, padded, side).to(ctx.filters_dtype)
            grad_filters = overlap.view(batch, num, side * side, 1, 1)
        return grad_frames, grad_filters, None


def _correlate(a: Tensor, b: Tensor, side: int) -> Tensor:
    """Sums products of two stacks of pictures at every shift.

        out[n, i, j] = sum over c, y, x of a[c, n, y, x] * b[c, n, y + i, x + j]

    Rows are cut into stretches of x; a stretch of `a` times the longer stretch of `b` that holds
    all its shifts gives a small matrix, of which the diagonals are wanted.

    Args:
        a: (C, N, H, W).
        b: (C, N, H + side - 1, W + side - 1).

    Returns:
        (N, side, side).
    """
    _, num, height, width = a.shape
    stretches = -(-width // STRETCH)
    fill, long = stretches * STRETCH - width, STRETCH + side - 1
    # rows lie (y, c, time range), so that shifting y is a step to later rows
    if fill:
        a, b = F.pad(a, (0, fill)), F.pad(b, (0, fill))
    rows = a.permute(1, 2, 0, 3).reshape(num, -1, STRETCH)
    wide = b.permute(1, 2, 0, 3).unfold(3, long, STRETCH).reshape(num, -1, long)
    step = wide.shape[1] // (height + side - 1)
    shifts = []
    for i in range(side):
        product = rows.mT @ wide[:, i * step : i * step + rows.shape[1]]  # (N, STRETCH, long)
        skewed = F.pad(product.flatten(1), (0, STRETCH)).view(num, STRETCH, long + 1)
        shifts.append(skewed[:, :, :side].sum(1))
    return torch.stack(shifts, 1)


class _ApplyGrid(torch.autograd.Function):
    """A grid of filters a frame, tap by tap: autograd's own graph was measured 15 times slower.

    Interpolation is two matrix products: along y for all taps at once, along x for a row of taps.
    """

    @staticmethod
    def forward(
        ctx: Any, frames: Tensor, filters: Tensor, side: int, spacing: float | None
    ) -> Tensor:
        frames = frames.contiguous()  # colours apart, or each tap would stride over them
        ctx.save_for_backward(frames, filters)
        ctx.side, ctx.spacing = side, spacing
        padded = _pad(frames, side)
        out = torch.zeros_like(frames)
        for tap, weight in enumerate(_weights(frames, filters, side, spacing)):
            out.addcmul_(_shifted(padded, frames, tap, side), weight[:, None])
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the type
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        grad = grad_outputs[0].contiguous()
        frames, filters = ctx.saved_tensors
        side, spacing = ctx.side, ctx.spacing
        padded = _pad(frames, side)
        grad_frames = grad_filters = None
        if ctx.needs_input_grad[1]:
            up_h, up_w = _interpolation(frames, filters, spacing)
            rows = []
            for first in range(0, side * side, side):
                overlap = frames.new_zeros(side, *frames[:, 0].shape)  # (K, B, T, H, W)
                for tap, product in enumerate(overlap, first):
                    shifted = _shifted(padded, frames, tap, side)
                    for colour in range(frames.shape[1]):
                        product.addcmul_(shifted[:, colour], grad[:, colour])
                rows.append(up_h.mT @ overlap @ up_w.mT)
            grad_filters = torch.cat(rows).movedim(0, 2).to(filters.dtype)
        if ctx.needs_input_grad[0]:
            grad_padded = torch.zeros_like(padded)
            for tap, weight in enumerate(_weights(frames, filters, side, spacing)):
                _shifted(grad_padded, frames, tap, side).addcmul_(grad, weight[:, None])
            grad_frames = _unpad(grad_padded, side)
        return grad_frames, grad_filters, None, None


def _weights(frames: Tensor, filters: Tensor, side: int, spacing: float | None) -> Iterator[Tensor]:
    """Yields the weight (B, T, H, W) of each tap at each pixel."""
    up_h, up_w = _interpolation(frames, filters, spacing)
    tall = up_h @ filters.to(frames.dtype).movedim(2, 0)  # (K*K, B, T, H, gw)
    for row in tall.split(side):
        yield from row @ up_w


def _pad(frames: Tensor, side: int) -> Tensor:
    """Repeats the border pixels of (..., H, W) by K//2 on every side."""
    p = side // 2
    return F.pad(frames.flatten(0, -4), (p, p, p, p), mode="replicate").unflatten(
        0, frames.shape[:-3]
    )


def _unpad(grad: Tensor, side: int) -> Tensor:
    """Adds what fell on the repeated border back to the border pixels: `_pad` transposed."""
    p = side // 2
    grad = grad.clone()
    grad[..., p, :] += grad[..., :p, :].sum(-2)
    grad[..., -p - 1, :] += grad[..., -p:, :].sum(-2)
    grad[..., p] += grad[..., :p].sum(-1)
    grad[..., -p - 1] += grad[..., -p:].sum(-1)
    return grad[..., p:-p, p:-p]


def _shifted(padded: Tensor, frames: Tensor, tap: int, side: int) -> Tensor:
    """Returns the view of the padded frames that a tap reads."""
    row, column = divmod(tap, side)
    return padded[..., row : row + frames.shape[-2], column : column + frames.shape[-1]]


def _interpolation(frames: Tensor, filters: Tensor, spacing: float | None) -> tuple[Tensor, Tensor]:
    """Returns (H, gh) and (gw, W) matrices that spread a grid over the frame's pixels."""
    up_h = _bilinear(filters.shape[-2], frames.shape[-2], spacing, frames)
    up_w = _bilinear(filters.shape[-1], frames.shape[-1], spacing, frames)
    return up_h.mT, up_w


def _bilinear(cells: int, pixels: int, spacing: float | None, like: Tensor) -> Tensor:
    """Returns the (cells, pixels) weights of linear interpolation between cell centres.

    Made on the device of `like`, so that nothing waits for the host.
    """
    options = {"device": like.device, "dtype": like.dtype}
    position = (torch.arange(pixels, **options) + 0.5) / (spacing or pixels / cells) - 0.5
    distance = position.clamp(0, cells - 1) - torch.arange(cells, **options)[:, None]
    return (1 - distance.abs()).clamp(min=0)
