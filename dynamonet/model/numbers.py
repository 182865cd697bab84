"""The named numbers of a clip's motion: name, unit, meaning. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Any, TypeVar

Array = TypeVar("Array", bound=Any)  # of numpy or torch


@dataclass(frozen=True)
class Number:
    """One of the numbers that describe a clip's motion."""

    name: str
    unit: str
    meaning: str


# units, and how often each has time below the line
RATES = {
    "nat": 0,
    "share": 0,
    "side": 0,
    "1/s": 1,
    "1/s2": 2,
    "nat/s": 1,
    "share/s": 1,
    "side/s": 1,
    "side/s2": 2,
}
_QUANTITIES = {
    "speed": ("side/s", "speed"),
    "own_speed": ("side/s", "speed less the camera's motion"),
    "moved": ("share", "share of the weight that is not a copy"),
    "doubt": ("nat", "entropy of a filter"),
    "difference": ("1/s", "how fast pixels change, 1 = from black to white"),
}
_STATISTICS = {
    "mean": "mean over cells and frames",
    "std": "deviation over cells and frames",
    "median": "median over cells and frames",
    "q90": "90th percentile over cells and frames",
    "q99": "99th percentile over cells and frames",
    "std_in_time": "deviation over frames of the frame's mean",
    "std_in_space": "deviation over cells of the cell's mean",
    "change": "mean absolute change in time",
}
DIRECTIONS = ("right", "down_right", "down", "down_left", "left", "up_left", "up", "up_right")
_GRADIENTS = {
    "du_dx": "u along x",
    "dv_dy": "v along y",
    "du_dy": "u along y",
    "dv_dx": "v along x",
}
HALVES = ("upper", "lower")
_HALF = {
    "u_abs": ("side/s", "mean speed left and right"),
    "u_abs_std": ("side/s", "its deviation over frames"),
    "v_abs": ("side/s", "mean speed up and down"),
    "v_abs_std": ("side/s", "its deviation over frames"),
    "v": ("side/s", "mean velocity downwards"),
    "v_std": ("side/s", "its deviation over frames"),
    "u_along": ("side/s", "mean velocity in the direction of the clip's mean"),
    "u_along_std": ("side/s", "its deviation over frames"),
}
_PLACE = {
    "extent_x": ("side", "deviation in x of where it is: mean over frames"),
    "extent_y": ("side", "deviation in y of where it is: mean over frames"),
    "extent_x_std": ("side", "deviation in x of where it is: its deviation over frames"),
    "extent_y_std": ("side", "deviation in y of where it is: its deviation over frames"),
    "drift_x": ("side/s", "velocity in x of its centre, from first to last frame, absolute"),
    "drift_y": ("side/s", "velocity in y of its centre, from first to last frame, absolute"),
    "drift_x_steps": ("side/s", "the same in x from frame to frame: mean"),
    "drift_y_steps": ("side/s", "the same in y from frame to frame: mean"),
    "upper_share": ("share", "how much of it is above its centre"),
    "lower_share": ("share", "how much of it is below its centre"),
}
PLACED = {"moved": _QUANTITIES["moved"][1], "difference": _QUANTITIES["difference"][1]}


def _rate(unit: str) -> str:
    return unit + "2" if unit.endswith("/s") else unit + "/s"


NUMBERS = (
    *(
        Number(
            f"{quantity}_{statistic}",
            _rate(unit) if statistic == "change" else unit,
            f"{what}: {how}",
        )
        for (quantity, (unit, what)), (statistic, how) in product(
            _QUANTITIES.items(), _STATISTICS.items()
        )
    ),
    *(
        Number(f"towards_{name}", "side/s", f"mean velocity less the camera's, {name}")
        for name in DIRECTIONS
    ),
    *(Number(name, "1/s", f"mean absolute change of {how}") for name, how in _GRADIENTS.items()),
    Number("acceleration", "side/s2", "mean length of the change of velocity"),
    Number("camera_u_std", "side/s", "deviation over frames of the camera's u"),
    Number("camera_v_std", "side/s", "deviation over frames of the camera's v"),
    Number("camera_u_abs", "side/s", "mean absolute u of the camera"),
    Number("camera_v", "side/s", "mean v of the camera"),
    *(
        Number(f"{quantity}_{name}", unit, f"{what}: {how}")
        for (quantity, what), (name, (unit, how)) in product(PLACED.items(), _PLACE.items())
    ),
    *(
        Number(f"{half}_{name}", unit, f"{half} half of where it moves: {what}")
        for half, (name, (unit, what)) in product(HALVES, _HALF.items())
    ),
)
POWERS = tuple(RATES[number.unit] for number in NUMBERS)  # of time below the line


def signed_root(values: Array) -> Array:
    """Returns roots that keep the sign, with a finite slope at 0: x / sqrt(|x| + 1e-4).

    A few fast clips would outweigh all others.
    """
    return values / (abs(values) + 1e-4) ** 0.5
