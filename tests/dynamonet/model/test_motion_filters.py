from __future__ import annotations

from functools import partial

import pytest
import torch

from dynamonet.errors import UserError
from dynamonet.model.config import FilterConfig, ModelConfig, TrunkConfig
from dynamonet.model.filtering import apply_filters
from dynamonet.model.motion_filters import MotionFilters
from dynamonet.model.network import DynamoNet
from dynamonet.model.prediction import predict_levels
from dynamonet.settings import SettingsError, validate


def naive(
    frames: torch.Tensor, filters: torch.Tensor, spacing: float | None = None
) -> torch.Tensor:
    """The sum in the docstring, loop by loop."""
    height, width = frames.shape[-2:]
    taps, gh, gw = filters.shape[2:]
    px_y, px_x = (spacing, spacing) if spacing else (height / gh, width / gw)
    side = round(taps**0.5)
    out = torch.zeros_like(frames)
    for y in range(height):
        for x in range(width):
            gy = min(max((y + 0.5) / px_y - 0.5, 0), gh - 1)
            gx = min(max((x + 0.5) / px_x - 0.5, 0), gw - 1)
            y0, x0 = int(gy), int(gx)
            y1, x1 = min(y0 + 1, gh - 1), min(x0 + 1, gw - 1)
            wy, wx = gy - y0, gx - x0
            here = (1 - wy) * ((1 - wx) * filters[..., y0, x0] + wx * filters[..., y0, x1])
            here = here + wy * ((1 - wx) * filters[..., y1, x0] + wx * filters[..., y1, x1])
            for tap in range(taps):
                row = min(max(y + tap // side - side // 2, 0), height - 1)
                column = min(max(x + tap % side - side // 2, 0), width - 1)
                out[..., y, x] += here[:, None, :, tap] * frames[..., row, column]
    return out


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("side", [3, 5, 7, 9, 11])
def test_applying_filters_equals_the_naive_sum(side: int, grid: tuple[int, int]) -> None:
    frames = torch.randn(2, 3, 2, 7, 9, dtype=torch.float64)
    filters = torch.randn(2, 2, side**2, *grid, dtype=torch.float64)
    torch.testing.assert_close(apply_filters(frames, filters), naive(frames, filters))
    torch.testing.assert_close(apply_filters(frames, filters, 2.5), naive(frames, filters, 2.5))


@pytest.mark.parametrize(
    ("side", "grid", "width"), [(3, (1, 1), 5), (5, (1, 1), 18), (5, (2, 2), 5), (7, (2, 1), 5)]
)
def test_both_gradients_are_exact(side: int, grid: tuple[int, int], width: int) -> None:
    frames = torch.randn(1, 2, 2, 6, width, dtype=torch.float64, requires_grad=True)
    filters = torch.randn(1, 2, side**2, *grid, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(apply_filters, (frames, filters))
    spaced = partial(apply_filters, spacing=2.5)
    assert torch.autograd.gradcheck(spaced, (frames, filters))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_the_result_and_its_gradients_do_not_depend_on_layout_or_autocast(
    grid: tuple[int, int],
) -> None:
    frames, grad = torch.randn(2, 3, 4, 8, 8), torch.randn(2, 3, 4, 8, 8)
    filters = torch.randn(2, 4, 9, *grid, requires_grad=True)
    expected = apply_filters(frames, filters)
    (wanted,) = torch.autograd.grad(expected, filters, grad)
    laid = frames.contiguous(memory_format=torch.channels_last_3d)
    with torch.autocast("cpu", torch.bfloat16):
        found = apply_filters(laid, filters)
    (got,) = torch.autograd.grad(
        found, filters, grad.contiguous(memory_format=torch.channels_last_3d)
    )
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(got, wanted)


def test_delta_filters_return_the_frame() -> None:
    frames = torch.randn(1, 3, 4, 8, 8)
    delta = torch.zeros(1, 4, 25, 3, 3)
    delta[:, :, 12] = 1
    torch.testing.assert_close(apply_filters(frames, delta), frames)


@pytest.mark.parametrize(("dx", "dy"), [(1, 0), (-2, 1), (0, 2)])
def test_a_shifted_clip_is_predicted_exactly_by_the_filter_that_shifts(dx: int, dy: int) -> None:
    still = torch.randn(1, 3, 12, 12)
    moved = torch.roll(still, (dy, dx), dims=(2, 3))
    filters = torch.zeros(1, 1, 5, 5)
    filters[..., 2 - dy, 2 - dx] = 1  # take the value from where it came
    guess = apply_filters(still[:, :, None], filters.view(1, 1, 25, 1, 1))[:, :, 0]
    inside = (slice(None), slice(None), slice(2, -2), slice(2, -2))
    torch.testing.assert_close(guess[inside], moved[inside])


def test_optimising_the_layer_on_one_pair_reaches_the_closed_form() -> None:
    from dynamonet.model.prediction import best_filters

    torch.manual_seed(0)
    first = torch.randn(1, 3, 1, 16, 16, dtype=torch.float64)
    second = 0.6 * torch.roll(first, 1, 4) + 0.3 * torch.roll(first, -1, 3)
    best = best_filters(first, second, 3)
    filters = torch.zeros(1, 1, 9, 1, 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([filters], max_iter=200, tolerance_grad=1e-12)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        error = (apply_filters(first, filters) - second)[..., 1:-1, 1:-1].square().sum()
        error.backward()
        return error

    optimizer.step(closure)  # type: ignore[arg-type]
    torch.testing.assert_close(filters.detach(), best, atol=1e-6, rtol=0)


@pytest.mark.parametrize("normalisation", ["linear", "softmax"])
@pytest.mark.parametrize("kind", ["shared", "grid"])
def test_training_starts_from_copying_the_frame(kind: str, normalisation: str) -> None:
    values = {"kind": kind, "normalisation": normalisation, "cell_px": 4}
    config = validate(FilterConfig, values, origin="test")
    layer = MotionFilters(
        32,
        config,
        num_filters=8,
        last_step_only=False,
        temporal_stride=4,
        spatial_stride=16,
    )
    features = torch.randn(2, 32, 2, 3, 3)
    filters = layer(features, 8, (48, 48))
    grid = (1, 1) if kind == "shared" else (12, 12)
    assert filters.shape == (2, 1, 8, 25, *grid)
    assert (filters.argmax(3) == 12).all()
    if normalisation == "linear":
        torch.testing.assert_close(filters[0, 0, 0, :, 0, 0], layer.start())
    else:
        torch.testing.assert_close(filters.sum(3), torch.ones_like(filters.sum(3)))
    assert layer.describe(filters).shape == (2, layer.dmr_dim)


def test_the_dmr_of_shared_filters_is_the_filters_themselves() -> None:
    config = FilterConfig(kind="shared", normalisation="linear", size=3)
    layer = MotionFilters(
        16, config, num_filters=4, last_step_only=False, temporal_stride=2, spatial_stride=8
    )
    torch.nn.init.normal_(layer.generator.linear.weight)  # type: ignore[union-attr]
    filters = layer(torch.randn(3, 16, 2, 2, 2), 4, (16, 16))
    moved = filters[:, 0, :, :, 0, 0] - layer.start()
    torch.testing.assert_close(layer.describe(filters), moved.flatten(1))


@pytest.mark.parametrize("cells", [1, 2, 3, 12])
def test_the_dmr_of_a_grid_averages_it_into_cells(cells: int) -> None:
    config = FilterConfig(size=7, cell_px=4, dmr_cells=cells)
    layer = MotionFilters(
        16, config, num_filters=4, last_step_only=False, temporal_stride=2, spatial_stride=8
    )
    torch.nn.init.normal_(layer.generator.linear.weight)  # type: ignore[union-attr]
    filters = layer(torch.randn(2, 16, 2, 3, 3), 4, (24, 24))
    found = layer.describe(filters).view(2, 4, 49, cells, cells)
    moved = filters[:, 0] - layer.start()[:, None, None]
    side = max(1, 6 // cells)
    torch.testing.assert_close(found[..., 0, 0], moved[..., :side, :side].mean((3, 4)))
    torch.testing.assert_close(found[..., -1, -1], moved[..., -side:, -side:].mean((3, 4)))
    assert layer.dmr_dim == found[0].numel()


def test_a_grid_follows_longer_clips_and_shared_filters_say_that_they_cannot() -> None:
    def layer(kind: str) -> MotionFilters:
        config = validate(FilterConfig, {"kind": kind}, origin="test")
        return MotionFilters(
            8, config, num_filters=8, last_step_only=False, temporal_stride=4, spatial_stride=8
        )

    assert layer("grid")(torch.randn(1, 8, 3, 2, 2), 12, (16, 16)).shape[2] == 12
    with pytest.raises(UserError, match="built for 8 frames and got 12"):
        layer("shared")(torch.randn(1, 8, 3, 2, 2), 12, (16, 16))


@pytest.mark.parametrize("px", [56, 50, 64])
def test_filters_stand_cell_px_apart_whatever_the_size_of_the_frame(px: int) -> None:
    """A stride of 32 divides neither 56 nor 50, and 8 does not divide 50."""
    trunk = TrunkConfig(depth=10, width=4)
    config = ModelConfig(num_frames=2, frame_px=px, trunk=trunk, filters=FilterConfig(levels=(1,)))
    model = DynamoNet(config)
    clip = torch.randn(1, 3, 2, px, px)
    cells = -(-px // 8)
    filters = model(clip).filters
    assert filters.shape[-2:] == (cells, cells)
    filters = torch.zeros_like(filters)
    filters[:, :, :, 12] = 1  # a copy, but for one cell
    filters[:, :, :, :, 2, 3] = 0
    (frames,) = predict_levels(clip, filters, (1,), "within_clip", config.filters.cell_px)
    share = 1 - (frames / clip)[0, 0, 0]
    expected = torch.zeros(px, px)
    tent = (1 - (torch.arange(px) + 0.5 - 20).abs() / 8).clamp(min=0)
    expected += tent[:, None] * (1 - (torch.arange(px) + 0.5 - 28).abs() / 8).clamp(min=0)
    torch.testing.assert_close(share, expected, atol=1e-4, rtol=0)


def test_settings_that_cannot_be_built_are_refused() -> None:
    with pytest.raises(SettingsError, match="odd"):
        validate(FilterConfig, {"size": 4}, origin="test")
    with pytest.raises(SettingsError, match="pooling factors"):
        validate(FilterConfig, {"levels": [2, 2]}, origin="test")
    with pytest.raises(UserError, match="choose a divisor of 32"):
        MotionFilters(
            8,
            FilterConfig(cell_px=5),
            num_filters=8,
            last_step_only=False,
            temporal_stride=4,
            spatial_stride=32,
        )
    with pytest.raises(ValueError, match="do not fit frames"):
        apply_filters(torch.zeros(1, 3, 2, 8, 8), torch.zeros(1, 3, 9, 1, 1))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
@pytest.mark.slow
def test_the_layer_compiles_without_graph_breaks(grid: tuple[int, int]) -> None:
    torch._dynamo.reset()
    frames = torch.randn(1, 3, 2, 8, 8)
    filters = torch.randn(1, 2, 9, *grid, requires_grad=True)
    compiled = torch.compile(apply_filters, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(frames, filters), apply_filters(frames, filters))
    compiled(frames, filters).square().sum().backward()
    (expected,) = torch.autograd.grad(apply_filters(frames, filters).square().sum(), filters)
    torch.testing.assert_close(filters.grad, expected)
