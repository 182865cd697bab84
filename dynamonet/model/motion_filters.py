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

import torch
from torch import Tensor, nn
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
                    f"model.filters.cell_px is {config.cell_px}, but the trunk's features are "
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

    def forward(self, features: Tensor, num_filters: int, frame: tuple[int, int]) -> Tensor:
        """Maps features (B, D, t, h, w) to filters (B, L, N, K*K, gh, gw), always fp32.

        What the generator adds to the filters' start is computed in the trunk's precision.

        Args:
            num_filters: N. A grid follows the clip's length; one shared filter a frame cannot.
            frame: Height and width of the clip in pixels, which the grid covers: filters of cells
                that lie wholly outside, where the trunk rounded up, are left out.

        Raises:
            UserError: this layer cannot emit that many filters.
        """
        if num_filters != self.num_filters and isinstance(self.generator, SharedGenerator):
            raise UserError(
                f"these shared motion filters were built for {self.num_filters} frames and got "
                f"{num_filters}: their linear layer has weights for each frame. Use clips of the "
                "length the model was built for, or `model.filters.kind: grid`."
            )
        x = features[:, :, -1:] if self.last_step_only else features
        rows, columns = (-(-side // self.config.cell_px) for side in frame)
        added = self.generator(x)[:, :, :num_filters, :, :rows, :columns]
        with torch.autocast(features.device.type, enabled=False):
            logits = added.float() + self.centre
            return logits.softmax(3) if self.config.normalisation == "softmax" else logits

    def start(self) -> Tensor:
        """Returns the filter that training starts from, shape (K*K,)."""
        centre = self.centre.flatten()
        return centre.softmax(0) if self.config.normalisation == "softmax" else centre

    def describe(self, filters: Tensor) -> Tensor:
        """Returns the dynamic motion representation: filters as one vector a clip.

        The filters of the first level, less the start filter, averaged into c x c cells, c =
        `dmr_cells` (a smaller grid fills several cells with one filter): shape (B, N * K*K * c*c).
        With one shared filter a frame this is exactly the filter weights.
        """
        moved = filters[:, 0] - self.start()[:, None, None]
        return F.adaptive_avg_pool2d(moved.flatten(1, 2), self._dmr_cells).flatten(1)

    @property
    def dmr_dim(self) -> int:
        """Length of the vector that `describe` returns."""
        return self.num_filters * self.config.size**2 * self._dmr_cells**2

    @property
    def _dmr_cells(self) -> int:
        return 1 if self.config.kind == "shared" else self.config.dmr_cells
