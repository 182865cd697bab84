"""Drawn actions: how the joints and the root of a figure move over one cycle of an action.

    action 17 = kind of body, period, 26 channels x 64 phases, and a partner where two act together

An action is a number: everything about it follows from the number alone, so that labels mean the
same in every run. Ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# parts of every body, in the order of the channels; each has a lateral and a sagittal angle
PARTS = (
    "torso",
    "head",
    "arm_l",
    "arm_r",
    "leg_l",
    "leg_r",
    "fore_l",
    "fore_r",
    "shin_l",
    "shin_r",
)
# of the root: metres in heights of the body, and radians
ROOT = ("sway", "bob", "advance", "roll", "yaw", "pitch")
CHANNELS = 2 * len(PARTS) + len(ROOT)
PHASES = 64
HUMAN, ANIMAL, TREE = range(3)
KINDS = (0.6, 0.2, 0.2)  # shares of the actions
PAIRS = 0.25  # share of the actions of human figures that take two
PERIOD = (0.4, 2.4)  # seconds
TAUGHT = 1024  # actions with lower numbers are for training, others for tests

Wave = NDArray[np.float64]
_PHASE = np.arange(PHASES) / PHASES


@dataclass(frozen=True)
class Actions:
    """A table of actions. A of them."""

    kind: Tensor  # (A,) int64
    period: Tensor  # (A,), seconds
    channels: Tensor  # (A, CHANNELS, PHASES), radians and heights
    walk: Tensor  # (A,), heights a second along the heading
    spin: Tensor  # (A, 3), whole turns a cycle: roll, yaw, pitch
    pair: Tensor  # (A,) bool: a partner acts too
    partner: Tensor  # (A, CHANNELS, PHASES), its channels; the action's own where there is none
    gap: Tensor  # (A, PHASES), heights between the two

    @staticmethod
    @cache
    def taught() -> Actions:
        """Returns those that a network is taught."""
        return Actions.numbered(range(TAUGHT))

    @classmethod
    def numbered(cls, numbers: Iterable[int]) -> Actions:
        rows = [_Action.of(number) for number in numbers]

        def column(name: str) -> Tensor:
            return torch.tensor(np.array([getattr(row, name) for row in rows]))

        floats = ("period", "channels", "walk", "spin", "partner", "gap")
        return cls(
            kind=column("kind"), pair=column("pair"), **{n: column(n).float() for n in floats}
        )


@dataclass(frozen=True)
class _Action:
    kind: int
    period: float
    channels: Wave
    walk: float
    spin: Wave
    pair: bool
    partner: Wave
    gap: Wave

    @classmethod
    def of(cls, number: int) -> _Action:
        rng = np.random.default_rng((20191027, number))
        kind = int(rng.choice(3, p=KINDS))
        period = float(np.exp(rng.uniform(*np.log(PERIOD))))
        channels, walk, spin = _program(rng, kind)
        pair = kind == HUMAN and rng.random() < PAIRS
        partner = channels
        if pair and rng.random() < 0.6:
            partner = _program(rng, kind)[0]
        near = rng.choice([0.12, 0.3, 0.6])  # clinging, within reach, apart
        gap = near + rng.choice([0, 0.1, 0.4]) * (1 + _wave(rng)) / 2
        if rng.random() < 0.25:  # they meet and pass
            gap = 1.6 * (0.5 - _PHASE)
        if pair:
            walk, spin = 0.0, np.zeros(3)
        return cls(kind, period, channels, walk, spin, pair, partner, gap)


def _program(rng: np.random.Generator, kind: int) -> tuple[Wave, float, Wave]:
    """Draws the channels (CHANNELS, PHASES), the walk and the spins of an action."""
    angles, root = np.zeros((len(PARTS), 2, PHASES)), np.zeros((len(ROOT), PHASES))
    calm = rng.random() < 0.08  # a pose
    vigour = 0.06 if calm else float(np.exp(rng.normal(0, 0.3)))
    arms, legs = _pose(rng, kind)
    for upper, lower, pose, still in ((2, 6, arms, 0.2), (4, 8, legs, 0.3)):
        _limbs(rng, angles, (upper, lower), pose, vigour * (rng.random() > still))
    for part, size in ((0, 0.25), (1, 0.3)):
        for axis in range(2):
            if rng.random() < 0.4:
                angles[part, axis] += size * rng.normal() + vigour * size * _wave(rng)
    if rng.random() < 0.2:
        angles[0, 1] += rng.uniform(0.3, 1.3)  # bent forward
    if rng.random() < 0.5:
        root[1] += vigour * rng.uniform(0.01, 0.06) * _bounce(rng)
    elif rng.random() < 0.3:
        root[1] += rng.uniform(0.1, 0.35) * np.maximum(0, _wave(rng)) * (not calm)  # a jump
    if rng.random() < 0.3:
        root[0] += vigour * rng.uniform(0.02, 0.15) * _wave(rng)
    if rng.random() < 0.2:
        root[2] += vigour * rng.uniform(0.02, 0.2) * _wave(rng)
    for axis in (3, 4):
        if rng.random() < 0.25:
            root[axis] += vigour * rng.uniform(0.05, 0.5) * _wave(rng)
    if rng.random() < 0.12:
        root[5] += rng.choice([-1, 1]) * np.pi / 2  # lying
    spin = np.zeros(3)
    if not calm and rng.random() < 0.12:
        spin[rng.integers(3)] = rng.choice([-1, 1])
    walks = not calm and rng.random() < 0.4
    walk = float(rng.choice([-0.5, 0.3, 0.6, 1.0, 1.8])) if walks else 0.0
    return np.concatenate([angles.reshape(-1, PHASES), root]), walk, spin


def _pose(rng: np.random.Generator, kind: int) -> tuple[Wave, Wave]:
    """Draws what arms and legs are held at: (upper, lower) x (lateral, sagittal), radians."""
    arms = [
        [[0.1, 0], [0, 0.1]],  # hanging
        [[0.1, 1.5], [0, 0.2]],  # forward
        [[1.5, 0], [0, 0.2]],  # to the sides
        [[2.6, 0.2], [0, 0.3]],  # raised
        [[0.4, 0.5], [0, 1.6]],  # bent
    ]
    legs = [
        [[0.05, 0], [0, 0]],
        [[0.05, 0], [0, 0]],
        [[0.4, 0], [0, 0]],  # astride
        [[0.1, 1.5], [0, -1.5]],  # sitting
        [[0.2, 1.0], [0, -1.9]],  # crouching
    ]
    if kind != HUMAN:
        arms = legs = [[[0.05, 0], [0, -0.1]]]
    drawn = (np.array(each[rng.integers(len(each))], float) for each in (arms, legs))
    first, second = (each + 0.12 * rng.normal(size=(2, 2)) for each in drawn)
    return first, second


def _limbs(
    rng: np.random.Generator,
    angles: Wave,
    parts: tuple[int, int],
    pose: Wave,
    vigour: float,
) -> None:
    """Adds the motion of a left and a right limb of two parts each to angles (P, 2, PHASES)."""
    form = rng.choice(
        ["together", "against", "left", "right", "own"], p=[0.2, 0.3, 0.15, 0.15, 0.2]
    )
    waves = [[_wave(rng) if rng.random() < 0.75 else 0 * _PHASE for _ in range(2)] for _ in parts]
    sizes = rng.uniform(0.15, 1.0, (2, 2)) * np.where(rng.random((2, 2)) < 0.2, 0.3, 1.0)
    own = [[_wave(rng) for _ in range(2)] for _ in parts]
    for level, part in enumerate(parts):
        for axis in range(2):
            left = right = sizes[level, axis] * vigour * waves[level][axis]
            if form == "against":
                right = np.roll(right, PHASES // 2)
            elif form == "own":
                right = sizes[level, axis] * vigour * own[level][axis]
            left, right = left * (form != "right"), right * (form != "left")
            side = -1 if axis == 0 else 1  # sideways is outwards on both sides
            angles[part, axis] += pose[level, axis] + left
            angles[part + 1, axis] += side * (pose[level, axis] + right)


def _wave(rng: np.random.Generator) -> Wave:
    """Draws one cycle of a motion, between -1 and 1: swings, strokes, steps, bursts."""
    speed, start = int(rng.choice([1, 1, 1, 2])), rng.random()
    phase = (speed * _PHASE + start) % 1
    if rng.random() < 0.3:  # faster on one half of the way
        phase = phase ** np.exp(rng.normal(0, 0.5))
    forms: list[Callable[[Wave], Wave]] = [
        lambda p: np.sin(2 * np.pi * p),
        lambda p: _shaped(np.sin(2 * np.pi * p), 0.5),
        lambda p: _shaped(np.sin(2 * np.pi * p), 2.0),
        lambda p: 2 * _stroke(p, 0.15, 0.5) - 1,  # out quickly, back slowly
        lambda p: 2 * _stroke(p, 0.1, 0.25) - 1,  # a blow, then rest
        lambda p: 2 * (_eased(p / 0.2) - _eased((p - 0.5) / 0.2)) - 1,  # from pose to pose
        lambda p: np.sin(6 * np.pi * p) * (p < 2 / 3),  # twice to and fro, then rest
    ]
    form = rng.choice(len(forms), p=[0.3, 0.1, 0.1, 0.15, 0.12, 0.13, 0.1])
    return rng.choice([-1, 1]) * forms[form](phase)


def _bounce(rng: np.random.Generator) -> Wave:
    return 2 * np.abs(np.sin(2 * np.pi * (_PHASE + rng.random()))) - 1


def _shaped(wave: Wave, power: float) -> Wave:
    return np.sign(wave) * np.abs(wave) ** power


def _stroke(phase: Wave, out: float, back: float) -> Wave:
    return _eased(phase / out) - _eased((phase - out) / back)


def _eased(share: Wave) -> Wave:
    share = np.clip(share, 0, 1)
    return share * share * (3 - 2 * share)
