"""The named numbers of a clip's motion: name, unit, meaning. Light to import: no torch."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product


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
    "share": ("share", "of what moves, how much is in this half"),
    "u_abs": ("side/s", "mean speed left and right"),
    "u_abs_std": ("side/s", "its deviation over frames"),
    "v_abs": ("side/s", "mean speed up and down"),
    "v_abs_std": ("side/s", "its deviation over frames"),
    "v": ("side/s", "mean velocity downwards"),
    "v_std": ("side/s", "its deviation over frames"),
    "u_along": ("side/s", "mean velocity in the direction of the clip's mean"),
    "u_along_std": ("side/s", "its deviation over frames"),
}


def _rate(unit: str) -> str:
    return "side/s2" if unit == "side/s" else f"{unit}/s"


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
    Number("extent_x", "side", "deviation in x of where it moves: mean over frames"),
    Number("extent_y", "side", "deviation in y of where it moves: mean over frames"),
    Number("extent_x_std", "side", "its deviation over frames"),
    Number("extent_y_std", "side", "its deviation over frames"),
    Number(
        "drift_x", "side/s", "absolute velocity in x of the centre of what moves, first to last"
    ),
    Number(
        "drift_y", "side/s", "absolute velocity in y of the centre of what moves, first to last"
    ),
    Number("drift_x_steps", "side/s", "the same from frame to frame: mean"),
    Number("drift_y_steps", "side/s", "the same from frame to frame: mean"),
    *(
        Number(f"{half}_{name}", unit, f"{half} half of where it moves: {what}")
        for half, (name, (unit, what)) in product(HALVES, _HALF.items())
    ),
)
