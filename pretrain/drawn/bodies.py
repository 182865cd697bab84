"""Bodies: ten parts whose joints follow an action, as capsules in space.

           head
arm_l --- torso --- arm_r        people, animals on four legs, trees of limbs: the same ten
fore_l      |      fore_r        parts, with other directions, lengths and places to hang at
     leg_l  -  leg_r
    shin_l     shin_r
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.drawn.actions import ANIMAL, PARTS, PHASES

NUM_PARTS = len(PARTS)
_UPPER = [1, 2, 3, 4, 5]  # parts that hang at the torso, and those that hang at a part: the rest
_PARENT = [2, 3, 4, 5]
# length and radius in heights, of people and of animals; a head is as long as it is wide
_LENGTH = torch.tensor(
    [
        [0.30, 0.11, 0.17, 0.17, 0.24, 0.24, 0.19, 0.19, 0.24, 0.24],
        [0.55, 0.18, 0.22, 0.22, 0.22, 0.22, 0.22, 0.22, 0.22, 0.22],
    ]
)
_RADIUS = torch.tensor(
    [
        [0.085, 0.065, 0.035, 0.035, 0.05, 0.05, 0.03, 0.03, 0.04, 0.04],
        [0.12, 0.09, 0.04, 0.04, 0.045, 0.045, 0.03, 0.03, 0.03, 0.03],
    ]
)
_REST = torch.tensor(  # directions (x to the left side, y up, z forward)
    [
        [[0, 1, 0], [0, 1, 0], *[[0, -1, 0]] * 8],
        [[0, 0.1, 1], [0, 0.7, 0.7], *[[0, -1, 0]] * 8],
    ]
)
_ASIDE = torch.tensor([[0, 0, 0.1, -0.1, 0.06, -0.06], [0, 0, 0.08, -0.08, 0.08, -0.08]])


@dataclass(frozen=True)
class Bodies:
    """Bodies, F of them, as they are built. Lengths in heights."""

    rest: Tensor  # (F, P, 3), unit directions of the parts
    length: Tensor  # (F, P)
    radius: Tensor  # (F, P)
    hold: Tensor  # (F, P, 3): where parts hang, from the torso's lower end
    along: Tensor  # (F, P): and how far up the torso, as a share of it

    @classmethod
    def drawn(cls, kind: Tensor) -> Bodies:
        """Draws bodies of kinds (F,)."""
        count = len(kind)
        row = (kind == ANIMAL).long()
        rest = _REST[row].clone()
        length = _LENGTH[row] * torch.exp(0.12 * torch.randn(count, NUM_PARTS))
        radius = _RADIUS[row] * torch.exp(0.15 * torch.randn(count, NUM_PARTS))
        radius = radius * torch.exp(0.15 * torch.randn(count, 1))
        hold, along = torch.zeros(count, NUM_PARTS, 3), torch.zeros(count, NUM_PARTS)
        hold[:, :6, 0] = _ASIDE[row]
        along[:, 1:4] = 1.0
        tree = (kind > ANIMAL)[:, None]
        rest = torch.where(tree[..., None], torch.randn(count, NUM_PARTS, 3), rest)
        length = torch.where(tree, 0.12 + 0.3 * torch.rand(count, NUM_PARTS), length)
        radius = torch.where(tree, 0.02 + 0.07 * torch.rand(count, NUM_PARTS), radius)
        along = torch.where(tree, torch.rand(count, NUM_PARTS), along)
        hold = hold * ~tree[..., None]
        rest = rest / rest.norm(dim=-1, keepdim=True)
        symmetric = (kind <= ANIMAL).nonzero().flatten()
        for left in (2, 4, 6, 8):  # both sides of people and animals are alike
            for values in (length, radius):
                values[symmetric, left + 1] = values[symmetric, left]
        return cls(rest, length, radius, hold, along)

    def posed(self, channels: Tensor) -> tuple[Tensor, Tensor]:
        """Returns where parts begin and end, (F, T, P, 3) each, the pelvis near the origin.

        Args:
            channels: (F, T, CHANNELS), radians and heights.
        """
        angles = channels[..., : 2 * NUM_PARTS].unflatten(-1, (NUM_PARTS, 2))
        place, turned = channels[..., -6:-3], channels[..., -3:]
        root = tumbled(turned)
        bent = rotations(angles[..., 0], "z") @ rotations(-angles[..., 1], "x")
        torso = root @ bent[:, :, 0]
        parents = torch.stack([torso, torso, torso, root, root], 2)
        upper = parents @ bent[:, :, _UPPER]
        lower = upper[:, :, 1:] @ bent[:, :, 6:]
        frame = torch.cat([torso[:, :, None], upper, lower], 2)  # (F, T, P, 3, 3)
        way = (frame @ (self.rest * self.length[..., None])[:, None, :, :, None])[..., 0]
        trunk = place[:, :, None] + self.along[:, None, :6, None] * way[:, :, :1]
        held = (parents @ self.hold[:, None, _UPPER, :, None])[..., 0]
        begin = torch.cat([trunk[:, :, :1], trunk[:, :, _UPPER] + held], 2)
        begin = torch.cat([begin, begin[:, :, _PARENT] + way[:, :, _PARENT]], 2)
        return begin, begin + way


def channels_at(table: Tensor, phase: Tensor, vigour: Tensor) -> Tensor:
    """Reads channels (F, C, PHASES) at phases (F, T), in cycles: (F, T, C).

    Args:
        vigour: (F, C), factor on what varies.
    """
    place = (phase % 1) * PHASES
    low = place.floor().long() % PHASES
    share = (place - place.floor())[:, None]
    index = low[:, None].expand(-1, table.shape[1], -1)
    values = torch.lerp(table.gather(2, index), table.gather(2, (index + 1) % PHASES), share)
    middle = table.mean(2, keepdim=True)
    return (middle + (values - middle) * vigour[..., None]).transpose(1, 2)


def tumbled(angles: Tensor) -> Tensor:
    """Returns rotations (..., 3, 3) of roll, yaw and pitch (..., 3), radians."""
    roll, yaw, pitch = angles.unbind(-1)
    return rotations(yaw, "y") @ rotations(pitch, "x") @ rotations(roll, "z")


def rotations(angle: Tensor, axis: str) -> Tensor:
    """Returns rotations (..., 3, 3) about an axis, radians."""
    cos, sin = angle.cos(), angle.sin()
    none, one = torch.zeros_like(angle), torch.ones_like(angle)
    rows = {
        "x": (one, none, none, none, cos, -sin, none, sin, cos),
        "y": (cos, none, sin, none, one, none, -sin, none, cos),
        "z": (cos, -sin, none, sin, cos, none, none, none, one),
    }[axis]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))
