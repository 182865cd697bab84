"""Dynamic motion filters: the network emits small filters that turn each frame into the next.

    features --generator--> logits --normalise--> filters (B, L, T, K*K, gh, gw)
    frame t, filters t      --apply_filters-->    predicted frame t + 1

One filter is a K x K spatial kernel, shared over colour. `shared` has one for each frame (gh = gw =
1, the paper's reading); `grid` has one for each cell of a gh x gw grid, interpolated bilinearly
between cell centres (ours). L is the number of levels: resolutions at which frames are predicted.

Source: DynamoNet, ICCV 2019, for T filters, one K x K grid a frame, applied by convolution. Sharing
over space and colour is inferred. Generator, normalisation, grid and levels are ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dynamonet.errors import UserError
from dynamonet.model.config import FilterConfig

DELTA_LOGIT = 4.0  # softmax start: 69 % of a 5 x 5 filter stands on its centre. Source: measured
START_STD = 0.01  # softmax start: filters of different frames must differ a little to learn


class SharedGenerator(nn.Module):
    """One filter for each frame: global average pool, then one linear layer.

    Cost: (D + 1) L N K K parameters.
    """

    def __init__(self, dim: int, config: FilterConfig, num_filters: int) -> None:
        super().__init__()
        self.shape = (len(config.levels), num_filters, config.size**2, 1, 1)
        count = len(config.levels) * num_filters * config.size**2
        self.linear = nn.Linear(dim, count)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, D, t, h, w) to logits (B, L, N, K*K, 1, 1)."""
        return self.linear(features.mean((2, 3, 4))).view(-1, *self.shape)


class GridGenerator(nn.Module):
    """A grid of filters for each frame: every feature cell emits those of its own block.

    A feature cell covers `frames` x `cells` x `cells` filters in time, height and width, laid out
    by pixel shuffle, so nothing is lost by upsampling. Cost: (D + 1) L frames cells^2 K K.
    """

    def __init__(self, dim: int, config: FilterConfig, frames: int, cells: int) -> None:
        super().__init__()
        self.block = (len(config.levels), frames, config.size**2, cells)
        self.linear = nn.Linear(dim, len(config.levels) * frames * config.size**2 * cells**2)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, D, t, h, w) to logits (B, L, t*frames, K*K, h*cells, w*cells)."""
        levels, frames, taps, cells = self.block
        batch, _, t, h, w = features.shape
        x = self.linear(features.permute(0, 2, 3, 4, 1))
        x = x.view(batch, t, h, w, levels, frames, cells, cells, taps)
        x = x.permute(0, 4, 1, 5, 8, 2, 6, 3, 7)  # B, L, t, frames, taps, h, cells, w, cells
        return x.reshape(batch, levels, t * frames, taps, h * cells, w * cells)


class MotionFilters(nn.Module):
    """The DMR layer: features -> normalised filters.

        linear:   f = delta + generator(features), generator starting at zero
        softmax:  f = softmax over K*K of (DELTA_LOGIT * delta + generator(features))

    Either way step 0 predicts (nearly) a copy of the frame: a random start was seen to begin at 50
    times the error of copying.
    """

    centre: Tensor

    def __init__(
        self,
        dim: int,
        config: FilterConfig,
        *,
        num_filters: int,
        last_step_only: bool,
        temporal_stride: int,
        spatial_stride: int,
    ) -> None:
        """Args:
            dim: D, channels of the features.
            num_filters: N, filters for each clip: T within the clip, H for future frames.
            last_step_only: read only the last temporal step of the features (future frames).
            temporal_stride, spatial_stride: frames and pixels for each feature cell.

        Raises:
            UserError: `cell_px` does not divide the trunk's spatial stride.
        """
        super().__init__()
        self.config, self.num_filters, self.last_step_only = config, num_filters, last_step_only
        if config.kind == "shared":
            self.generator: nn.Module = SharedGenerator(dim, config, num_filters)
        else:
            if spatial_stride % config.cell_px:
                raise UserError(
                    f"model.filters.cell_px is {config.cell_px}, but the trunk's features stand "
                    f"{spatial_stride} pixels apart: choose a divisor of {spatial_stride}"
                )
            frames = num_filters if last_step_only else temporal_stride
            cells = spatial_stride // config.cell_px
            self.generator = GridGenerator(dim, config, frames, cells)
        softmax = config.normalisation == "softmax"
        linear = self.generator.linear
        assert isinstance(linear, nn.Linear)
        nn.init.normal_(linear.weight, std=START_STD if softmax else 0.0)
        nn.init.zeros_(linear.bias)
        centre = torch.zeros(config.size**2)
        centre[config.size**2 // 2] = DELTA_LOGIT if softmax else 1.0
        self.register_buffer("centre", centre[:, None, None], persistent=False)

    def forward(self, features: Tensor, num_filters: int) -> Tensor:
        """Maps features (B, D, t, h, w) to filters (B, L, N, K*K, gh, gw), always in fp32.

        Args:
            num_filters: N. A grid follows the clip's length; one shared filter a frame cannot.

        Raises:
            UserError: this layer cannot emit that many filters.
        """
        if num_filters != self.num_filters and isinstance(self.generator, SharedGenerator):
            raise UserError(
                f"these shared motion filters were built for {self.num_filters} frames and got "
                f"{num_filters}: their linear layer has weights for each frame. Use clips of the "
                "length the model was built for, or `model.filters.kind: grid`."
            )
        with torch.autocast(features.device.type, enabled=False):
            x = features.float()
            if self.last_step_only:
                x = x[:, :, -1:]
            logits = self.generator(x)[:, :, :num_filters] + self.centre
            return logits.softmax(3) if self.config.normalisation == "softmax" else logits

    def start(self) -> Tensor:
        """Returns the filter that training starts from, shape (K*K,)."""
        centre = self.centre.flatten()
        return centre.softmax(0) if self.config.normalisation == "softmax" else centre

    def describe(self, filters: Tensor) -> Tensor:
        """Returns the dynamic motion representation: filters as one vector a clip.

        The filters of the first level, less the start filter, averaged into at most
        `dmr_cells` x `dmr_cells` cells: shape (B, N * K*K * c * c). With one shared filter a frame
        this is exactly the filter weights.
        """
        batch, _, num, taps, gh, gw = filters.shape
        moved = filters[:, 0] - self.start()[:, None, None]
        cells = (min(self.config.dmr_cells, gh), min(self.config.dmr_cells, gw))
        pooled = F.adaptive_avg_pool2d(moved.reshape(batch, num * taps, gh, gw), cells)
        return pooled.flatten(1)

    @property
    def dmr_dim(self) -> int:
        """Length of the vector that `describe` returns."""
        cells = 1 if self.config.kind == "shared" else self.config.dmr_cells
        return self.num_filters * self.config.size**2 * cells**2


def apply_filters(frames: Tensor, filters: Tensor) -> Tensor:
    """Applies a filter, or a grid of filters, to each frame.

        out[b, c, t, y, x] = sum over i, j of
            f[b, t, i*K + j] at (y, x) * frames[b, c, t, y + i - K//2, x + j - K//2]

    "f at (y, x)" interpolates bilinearly between cell centres; outside the frame its border pixels
    repeat. Exact first-order gradients for both arguments. Cost: K*K multiply-adds a value, memory
    for one interpolated tap at a time.

    Args:
        frames: (B, C, T, H, W).
        filters: (B, T, K*K, gh, gw); gh = gw = 1 is one filter for the whole frame.

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
    return _ApplyFilters.apply(frames, filters, side)  # type: ignore[no-any-return]


class _ApplyFilters(torch.autograd.Function):
    """Tap by tap: autograd's own graph of the same sum was measured 15 times slower."""

    @staticmethod
    def forward(ctx: Any, frames: Tensor, filters: Tensor, side: int) -> Tensor:
        ctx.save_for_backward(frames, filters)
        ctx.side = side
        up_h, up_w = _interpolation(frames, filters)
        padded = _pad(frames, side)
        out = torch.zeros_like(frames)
        for tap in range(side * side):
            weight = up_h @ filters[:, :, tap].to(frames.dtype) @ up_w
            out.addcmul_(_shifted(padded, frames, tap, side), weight[:, None])
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator hides the type
        ctx: Any, *grad_outputs: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        (grad,) = grad_outputs
        frames, filters = ctx.saved_tensors
        side = ctx.side
        up_h, up_w = _interpolation(frames, filters)
        padded = _pad(frames, side)
        need_frames, need_filters = ctx.needs_input_grad[:2]
        grad_filters = torch.empty_like(filters) if need_filters else None
        grad_padded = torch.zeros_like(padded) if need_frames else None
        for tap in range(side * side):
            if grad_filters is not None:
                overlap = (_shifted(padded, frames, tap, side) * grad).sum(1)
                grad_filters[:, :, tap] = up_h.mT @ overlap @ up_w.mT
            if grad_padded is not None:
                weight = up_h @ filters[:, :, tap].to(frames.dtype) @ up_w
                _shifted(grad_padded, frames, tap, side).addcmul_(grad, weight[:, None])
        grad_frames = None if grad_padded is None else _unpad(grad_padded, side)
        return grad_frames, grad_filters, None


def _pad(frames: Tensor, side: int) -> Tensor:
    p = side // 2
    return F.pad(frames, (p, p, p, p, 0, 0), mode="replicate")


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


def _interpolation(frames: Tensor, filters: Tensor) -> tuple[Tensor, Tensor]:
    """Returns (H, gh) and (gw, W) matrices that spread a grid over the frame's pixels."""
    up_h = _bilinear(filters.shape[-2], frames.shape[-2], frames)
    up_w = _bilinear(filters.shape[-1], frames.shape[-1], frames)
    return up_h.mT, up_w


def _bilinear(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Returns the (cells, pixels) weights of linear interpolation between cell centres.

    Made on the device of `like`, so that nothing waits for the host.
    """
    options = {"device": like.device, "dtype": like.dtype}
    position = (torch.arange(pixels, **options) + 0.5) * (cells / pixels) - 0.5
    distance = position.clamp(0, cells - 1) - torch.arange(cells, **options)[:, None]
    return (1 - distance.abs()).clamp(min=0)
