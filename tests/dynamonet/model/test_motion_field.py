from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dynamonet.model.config import FilterConfig, ModelConfig, TrunkConfig
from dynamonet.model.filtering import apply_filters
from dynamonet.model.motion_field import frame_difference, motion_field, motion_numbers
from dynamonet.model.network import DynamoNet
from dynamonet.model.numbers import NUMBERS, RATES

TRUNK = TrunkConfig(depth=10, width=4, stem_pool=False, temporal_strides=(1, 2, 2, 1))


def moving(right: int, down: int, frames: int = 3, cells: int = 4) -> Tensor:
    """Returns filters (1, N, 25, cells, cells) that move a whole picture."""
    filters = torch.zeros(1, frames, 5, 5, cells, cells)
    filters[:, :, 2 - down, 2 - right] = 1
    return filters.flatten(2, 3)


def numbers(filters: Tensor, seconds: float = 0.1) -> dict[str, float]:
    still = torch.zeros(1, 2, 5, 5)
    found = motion_numbers(motion_field(filters, 20, seconds), still, seconds)[0]
    return {number.name: float(value) for number, value in zip(NUMBERS, found, strict=True)}


@given(right=st.integers(-2, 2), down=st.integers(-2, 2))
def test_a_field_says_where_its_filters_move_a_picture(right: int, down: int) -> None:
    picture = torch.zeros(1, 1, 3, 20, 20)
    picture[..., 10, 10] = 1
    moved = apply_filters(picture, moving(right, down))
    assert moved[0, 0, 0, 10 + down, 10 + right] == 1
    field = motion_field(moving(right, down), side_px=20, seconds=0.1)
    torch.testing.assert_close(field.u, torch.full_like(field.u, right / 20 / 0.1))
    torch.testing.assert_close(field.v, torch.full_like(field.v, down / 20 / 0.1))
    assert (field.moved == float(bool(right or down))).all() and field.doubt.abs().max() < 1e-6


def test_the_camera_is_what_most_cells_do() -> None:
    filters = moving(1, 0)
    filters[..., 1, 1] = moving(1, -2)[..., 1, 1]  # one cell moves up as well
    found = numbers(filters)
    assert found["camera_u_abs"] == pytest.approx(0.5) and found["camera_v"] == pytest.approx(0)
    assert found["speed_median"] == pytest.approx(0.5)
    assert found["own_speed_median"] == pytest.approx(0, abs=1e-5)
    assert found["own_speed_mean"] == pytest.approx(1 / 16, abs=1e-5)
    assert found["towards_up"] == pytest.approx(1 / 16, abs=1e-5)
    assert found["towards_down"] == pytest.approx(0, abs=1e-5)
    assert found["acceleration"] == pytest.approx(0, abs=1e-4)


def test_a_picture_that_stands_still_has_numbers_too() -> None:
    found = torch.tensor([*numbers(moving(0, 0)).values()])
    assert found.isfinite().all() and found.abs().max() < 1e-4


@given(
    seed=st.integers(0, 1000),
    seconds=st.floats(0.01, 2),
    shape=st.sampled_from([(1, 1, 1), (1, 4, 3), (5, 1, 1), (7, 6, 6)]),
    linear=st.booleans(),
)
def test_numbers_are_finite_and_their_units_say_how_they_go_with_time(
    seed: int, seconds: float, shape: tuple[int, int, int], linear: bool
) -> None:
    draw = torch.randn(2, shape[0], 25, *shape[1:], generator=torch.Generator().manual_seed(seed))
    filters = (draw if linear else draw.softmax(2)).double()
    clip = torch.randn(2, 3, 3, 20, 20, generator=torch.Generator().manual_seed(seed)).double()
    of_steps, found = (
        motion_numbers(motion_field(filters, 24, each), frame_difference(clip, 8, each), each)
        for each in (1.0, seconds)
    )
    assert found.isfinite().all()
    powers = torch.tensor([RATES[number.unit] for number in NUMBERS])
    torch.testing.assert_close(found * seconds**powers, of_steps, rtol=1e-3, atol=1e-5)


def test_the_documentation_lists_every_number_with_its_unit_and_meaning() -> None:
    assert len({number.name for number in NUMBERS}) == len(NUMBERS) < 100
    page = (Path(__file__).parents[3] / "docs/motion.md").read_text("utf-8")
    table = page.split("## The numbers")[1]
    rows = [line for line in table.splitlines() if line.startswith("| `")]
    assert rows == [f"| `{n.name}` | {n.unit} | {n.meaning} |" for n in NUMBERS]
    assert f"{len(NUMBERS)} named numbers" in page


@pytest.mark.parametrize("kind", ["shared", "grid"])
def test_a_classifier_with_a_head_for_motion_teaches_the_filters(kind: str) -> None:
    filters = FilterConfig(kind=kind)  # type: ignore[arg-type]
    model = DynamoNet(
        ModelConfig(
            num_frames=8, frame_px=32, trunk=TRUNK, filters=filters, reads="field", num_classes=3
        )
    )
    output = model(torch.randn(2, 3, 8, 32, 32))
    assert output.heads is not None and output.heads.shape == (2, 2, 3)
    assert output.motion.shape == (2, len(NUMBERS))
    output.heads[:, 1].square().sum().backward()
    gradients = [p.grad for p in model.motion.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert any(g is not None and g.any() for g in gradients)
