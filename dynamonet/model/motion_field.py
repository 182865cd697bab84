"""The motion field: dynamic motion filters read as displacements, and as named numbers.

A filter f takes a pixel of the next frame from the K x K pixels around it, so its weights say where
that pixel came from: for dx, dy in pixels of the level's frame,

    u = -sum f dx, v = -sum f dy     displacement, rightwards and downwards
    moved = 1 - f(centre)            share of the weight that is not a copy
    doubt = -sum f log f             entropy: small where one displacement explains the pixel

The median over a frame's cells is taken for the camera's motion. Lengths are sides of the frame,
times are seconds: numbers of clips of another size or rate can be compared.

Source: ours; I3D's second stream reads flow that was made beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from dynamonet.model.config import PIXEL_SCALES
from dynamonet.model.numbers import DIRECTIONS, HALVES, NUMBERS, PLACED

_LITTLE = 1e-6  # keeps shares and slopes finite where nothing moves


@dataclass(frozen=True)
class MotionField:
    """Displacements of clips, cell by cell and frame by frame: (B, N, gh, gw) each."""

    u: Tensor  # sides of the frame per second, rightwards
    v: Tensor  # downwards
    moved: Tensor  # share
    doubt: Tensor  # nats


def motion_field(filters: Tensor, side_px: float, seconds: float) -> MotionField:
    """Reads filters as displacements.

    Args:
        filters: (B, N, K*K, gh, gw), of one level. Weights below zero, which linear filters may
            have, count by their size.
        side_px: Side of the frame in pixels of that level.
        seconds: Between two frames.
    """
    side = round(filters.shape[2] ** 0.5)
    weight = filters.abs()
    weight = weight / weight.sum(2, keepdim=True)
    scale = 1 / (side_px * seconds)
    steps = (torch.arange(side, device=filters.device, dtype=filters.dtype) - side // 2) * -scale
    down, right = weight.unflatten(2, (side, side)).sum(3), weight.unflatten(2, (side, side)).sum(2)
    u = (right * steps[:, None, None]).sum(2)
    v = (down * steps[:, None, None]).sum(2)
    doubt = -(weight * weight.clamp(min=1e-12).log()).sum(2)
    return MotionField(u, v, 1 - weight[:, :, side**2 // 2], doubt)


def frame_difference(clip: Tensor, cell_px: int, seconds: float) -> Tensor:
    """Returns how fast pixels change, cell by cell (B, T-1, gh, gw); 1 = from black to white.

    Args:
        clip: (B, 3, T, H, W), normalised.
        seconds: Between two frames.
    """
    _, (deviation, *_) = PIXEL_SCALES["pytorchvideo"]
    change = clip.diff(dim=2).abs().mean(1) * (deviation / seconds)
    return F.avg_pool2d(change, min(cell_px, *change.shape[2:]))


def motion_numbers(field: MotionField, difference: Tensor, seconds: float) -> Tensor:
    """Describes the motion of clips by `NUMBERS`: (B, M).

    Args:
        difference: Of frames, (B, N, gh, gw), see `frame_difference`.
        seconds: Between two frames.
    """
    u, v, moved, doubt, difference = (
        _at_least_two(each) for each in (field.u, field.v, field.moved, field.doubt, difference)
    )
    camera_u, camera_v = (_quantiles(each.flatten(2), 0.5)[0] for each in (u, v))  # B, N
    own_u, own_v = u - camera_u[..., None, None], v - camera_v[..., None, None]
    own_speed = _length(own_u, own_v)
    found: dict[str, Tensor] = {}
    quantities = {
        "speed": _length(u, v),
        "own_speed": own_speed,
        "moved": moved,
        "doubt": doubt,
        "difference": difference,
    }
    for name, values in quantities.items():
        found |= {f"{name}_{key}": value for key, value in _statistics(values, seconds).items()}
    found |= _directions(own_u, own_v, own_speed)
    found |= _gradients(u, v)
    found["acceleration"] = _length(u.diff(dim=1), v.diff(dim=1)).mean((1, 2, 3)) / seconds
    found["camera_u_std"], found["camera_v_std"] = _std(camera_u, 1), _std(camera_v, 1)
    found["camera_u_abs"], found["camera_v"] = camera_u.abs().mean(1), camera_v.mean(1)
    for name in PLACED:
        place, off_y = _place(quantities[name], seconds)
        found |= {f"{name}_{key}": value for key, value in place.items()}
        if name == "moved":
            found |= _halves(u, v, moved, off_y)
    return torch.stack([found[number.name] for number in NUMBERS], 1)


def _at_least_two(values: Tensor) -> Tensor:
    """Repeats a lone frame, row or column, so that it has changes: of nothing."""
    for dim in (1, 2, 3):
        if values.shape[dim] == 1:
            values = torch.cat([values, values], dim)
    return values


def _length(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square() + _LITTLE**2).sqrt()


def _std(values: Tensor, dim: int) -> Tensor:
    """Returns the deviation, with a gradient where nothing varies."""
    return (values.var(dim, correction=0) + _LITTLE**2).sqrt()


def _quantiles(values: Tensor, *shares: float) -> list[Tensor]:
    """Returns quantiles over the last axis; `torch.quantile` cannot be exported."""
    ordered = values.sort(-1).values
    places = [share * (values.shape[-1] - 1) for share in shares]
    return [
        ordered[..., math.floor(at)].lerp(ordered[..., math.ceil(at)], at - math.floor(at))
        for at in places
    ]


def _statistics(values: Tensor, seconds: float) -> dict[str, Tensor]:
    every = values.flatten(1)
    median, q90, q99 = _quantiles(every, 0.5, 0.9, 0.99)
    return {
        "mean": every.mean(1),
        "std": _std(every, 1),
        "median": median,
        "q90": q90,
        "q99": q99,
        "std_in_time": _std(values.mean((2, 3)), 1),
        "std_in_space": _std(values.mean(1).flatten(1), 1),
        "change": values.diff(dim=1).abs().mean((1, 2, 3)) / seconds,
    }


def _directions(u: Tensor, v: Tensor, speed: Tensor) -> dict[str, Tensor]:
    angle = torch.atan2(v, u)
    found = {}
    for number, name in enumerate(DIRECTIONS):
        away = ((angle - number * math.pi / 4 + math.pi) % (2 * math.pi) - math.pi).abs()
        share = (1 - away / (math.pi / 4)).clamp(min=0)
        found[f"towards_{name}"] = (share * speed).mean((1, 2, 3))
    return found


def _gradients(u: Tensor, v: Tensor) -> dict[str, Tensor]:
    across, down = u.shape[3], u.shape[2]
    found = {
        "du_dx": u.diff(dim=3) * across,
        "dv_dy": v.diff(dim=2) * down,
        "du_dy": u.diff(dim=2) * down,
        "dv_dx": v.diff(dim=3) * across,
    }
    return {name: values.abs().mean((1, 2, 3)) for name, values in found.items()}


def _place(weight: Tensor, seconds: float) -> tuple[dict[str, Tensor], Tensor]:
    """Describes where a weight is, and returns how far below its centre each cell lies."""
    rows, columns = weight.shape[2:]
    options = {"device": weight.device, "dtype": weight.dtype}
    y = ((torch.arange(rows, **options) + 0.5) / rows)[:, None]
    x = (torch.arange(columns, **options) + 0.5) / columns
    total = weight.sum((2, 3)) + _LITTLE  # it may be nowhere
    centre_x, centre_y = (weight * x).sum((2, 3)) / total, (weight * y).sum((2, 3)) / total
    off_x, off_y = x - centre_x[..., None, None], y - centre_y[..., None, None]
    extent_x = ((weight * off_x.square()).sum((2, 3)) / total + _LITTLE**2).sqrt()
    extent_y = ((weight * off_y.square()).sum((2, 3)) / total + _LITTLE**2).sqrt()
    length = (weight.shape[1] - 1) * seconds
    found = {
        "extent_x": extent_x.mean(1),
        "extent_y": extent_y.mean(1),
        "extent_x_std": _std(extent_x, 1),
        "extent_y_std": _std(extent_y, 1),
        "drift_x": (centre_x[:, -1] - centre_x[:, 0]).abs() / length,
        "drift_y": (centre_y[:, -1] - centre_y[:, 0]).abs() / length,
        "drift_x_steps": centre_x.diff(dim=1).abs().mean(1) / seconds,
        "drift_y_steps": centre_y.diff(dim=1).abs().mean(1) / seconds,
        "upper_share": ((weight * (off_y < 0)).sum((2, 3)) / total).mean(1),
        "lower_share": ((weight * (off_y >= 0)).sum((2, 3)) / total).mean(1),
    }
    return found, off_y


def _halves(u: Tensor, v: Tensor, moved: Tensor, off_y: Tensor) -> dict[str, Tensor]:
    """Describes how it moves above and below the centre of what moves."""
    found, mean = {}, (moved * u).sum((1, 2, 3)).sign()[:, None]
    for half, inside in zip(HALVES, (off_y < 0, off_y >= 0), strict=True):
        weight = moved * inside
        weight = weight / (weight.sum((2, 3), keepdim=True) + _LITTLE)
        mean_u, mean_v, u_abs, v_abs = (
            (weight * values).sum((2, 3)) for values in (u, v, u.abs(), v.abs())
        )
        of_frames = {"u_abs": u_abs, "v_abs": v_abs, "v": mean_v, "u_along": mean_u * mean}
        for name, values in of_frames.items():
            found[f"{half}_{name}"] = values.mean(1)
            found[f"{half}_{name}_std"] = _std(values, 1)
    return found
