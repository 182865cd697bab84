"""Drawn clips: one to three figures act before a textured background, under a camera.

    action   every figure of a clip does it, or stands by; two do it together where it takes two
    figure   a body, seen from anywhere, from a twelfth of the picture to more than all of it
    camera   held, panning, zooming, shaking, or following; its recording flickers, blurs, stalls

Nothing is drawn twice: every clip is new, so that none can be remembered. Source: measured, clips
that come again are remembered, and what is learnt from them is worth less. Ours.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pretrain.drawn.actions import Actions
from pretrain.drawn.bodies import NUM_PARTS, Bodies, channels_at, rotations, tumbled
from pretrain.drawn.raster import LAYERS, Capsules, figure_shift, shows
from pretrain.drawn.recording import record, textures
from pretrain.movers import Moved, Track

SPACING = (0.04, 0.16)  # seconds between frames
SIZE = (1 / 12, 1.1)  # of the body's height, share of the frame's side


@dataclass(frozen=True)
class DrawnClips:
    """Clips that were drawn. A displacement is known where its place was seen a frame before."""

    moved: Moved
    action: Tensor  # (B,) int64


def draw_clips(
    table: Actions,
    action: Tensor,
    *,
    num_frames: int,
    side: int,
    cell_px: int,
    device: torch.device,
) -> DrawnClips:
    """Draws a clip of each of some actions.

    Draws from torch's own generator, on the CPU, so that every device gets the same and no host
    waits for a device.

    Args:
        action: (B,) int64, rows of the table, on the CPU.
        cell_px: Pixels between the places at which displacements are told.
    """
    batch = len(action)
    time = _times(batch, num_frames)
    cast = _Cast.drawn(table, action, time)
    view = _Camera.drawn(cast, time)
    figures = cast.seen(view, side)
    background = view.track.to(device)
    canvas = torch.zeros(batch, num_frames, side, side, 4, device=device)
    drawn = background.draw(textures(batch).to(device), side, "reflection")
    canvas[..., :3] = drawn.movedim(1, -1)
    figures.draw(canvas)
    places = torch.arange(cell_px // 2, side + cell_px // 2, cell_px, device=device)
    places = places.clamp(max=side - 1)
    y, x = torch.meshgrid(places + 0.5, places + 0.5, indexing="ij")
    here = torch.stack([x, y], -1)
    shift, known, still = figure_shift(figures, canvas, here)
    behind = background.shift(here.view(-1, 2) * 2 / side - 1) * side / 2  # (B, T-1, g * g, 2)
    behind = behind.view_as(shift)
    clip = torch.arange(batch, device=device)[:, None, None, None]
    frame = torch.arange(num_frames - 1, device=device)[:, None, None]
    still &= shows(canvas, clip, frame, behind + here, still.new_zeros((), dtype=torch.int64))
    # the background is most of a picture: a part of it says as much as the figures do
    still &= torch.rand(batch, 1, *still.shape[2:]).to(device) < 0.25
    shift = torch.where(still[..., None], behind, shift).movedim(-1, 2)
    frames = record(canvas[..., :3].contiguous()).movedim(-1, 1)
    return DrawnClips(Moved(frames, shift, known | still), action.to(device))


def _times(batch: int, num_frames: int) -> Tensor:
    """Draws when frames are taken, (B, T) in seconds; some recordings show a frame twice."""
    low, high = (math.log(each) for each in SPACING)
    spacing = torch.exp(low + (high - low) * torch.rand(batch, 1))
    number = torch.arange(num_frames).expand(batch, -1)
    stalls = (torch.rand(batch, num_frames) < 0.25) & (torch.rand(batch, 1) < 0.1)
    shown = torch.where(stalls, 0, number).cummax(1).values
    return (shown - (num_frames - 1) / 2) * spacing


@dataclass(frozen=True)
class _Roles:
    """Who is in the clips: F figures, those of a clip one after the other."""

    clip: Tensor  # (F,)
    starts: Tensor  # (B,), the first figure of each clip
    number: Tensor  # (F,), of the action
    stands_by: Tensor  # (F,) bool: does the same elsewhere, or little
    partner: Tensor  # (F,) bool: acts with the first figure, where an action takes two
    paired: Tensor  # (F,) bool: one of those two

    @classmethod
    def drawn(cls, table: Actions, action: Tensor) -> _Roles:
        batch, pair = len(action), table.pair[action]
        beside = (torch.rand(batch, 2) < torch.tensor([0.3, 0.1])).sum(1)
        count = (1 + torch.maximum(beside, pair.long())).clamp(max=LAYERS)
        clip = torch.repeat_interleave(torch.arange(batch), count)
        starts = torch.cumsum(count, 0) - count
        place = torch.arange(len(clip)) - starts[clip]
        partner = pair[clip] & (place == 1)
        stands_by = (place > 0) & ~partner
        return cls(clip, starts, action[clip], stands_by, partner, pair[clip] & (place < 2))

    @property
    def lead(self) -> Tensor:
        """The first figure of the same clip, (F,)."""
        return self.starts[self.clip]


@dataclass(frozen=True)
class _Pace:
    """When and how strongly each figure acts; (F,) each."""

    vigour: Tensor  # (F, C), factor on each channel
    idle: Tensor  # bool
    pace: Tensor  # cycles a second
    start: Tensor  # cycles

    @classmethod
    def drawn(cls, table: Actions, roles: _Roles) -> _Pace:
        num = len(roles.clip)
        vigour = torch.exp(0.2 * torch.randn(num, table.channels.shape[1]))
        idle = roles.stands_by & (torch.rand(num) < 0.5)
        vigour = vigour * torch.where(idle, 0.1, 1.0)[:, None]
        pace = torch.exp(0.18 * torch.randn(num)) / table.period[roles.number]
        return cls(vigour, idle, pace, torch.rand(num))


@dataclass(frozen=True)
class _Stand:
    """Where each figure stands, and from where it is seen; (F,) each."""

    turn: Tensor  # radians
    tilt: Tensor
    scale: Tensor  # half sides of the frame for a height
    place: Tensor  # (F, 2), half sides
    mirror: Tensor  # -1 or 1

    @classmethod
    def drawn(cls, roles: _Roles) -> _Stand:
        num = len(roles.clip)
        turn, tilt = 2 * math.pi * torch.rand(num), 0.6 * torch.rand(num) - 0.1
        low, high = (math.log(2 * each) for each in SIZE)
        scale = torch.exp(low + (high - low) * torch.rand(num) ** 0.35)  # large ones tell more
        near = scale[roles.lead] * torch.exp(0.4 * torch.randn(num))
        scale = torch.where(roles.stands_by, near, scale)
        scale = torch.where(roles.paired, scale * 0.8, scale)
        place = (2 * torch.rand(num, 2) - 1) * (0.8 - 0.35 * scale).clamp(min=0.1)[:, None]
        mirror = torch.where(torch.rand(num) < 0.5, -1.0, 1.0)
        return cls(turn, tilt, scale, place, mirror)


@dataclass(frozen=True)
class _Cast:
    """The figures of all clips, F of them, before the camera sees them."""

    begin: Tensor  # (F, T, P, 3), heights
    end: Tensor
    radius: Tensor  # (F, P), heights
    clip: Tensor  # (F,)
    layer: Tensor  # (F,)
    stand: _Stand
    walked: Tensor  # (B, T, 2), where the first figure of each clip has come to, half sides

    @classmethod
    def drawn(cls, table: Actions, action: Tensor, time: Tensor) -> _Cast:
        roles = _Roles.drawn(table, action)
        number, partner = roles.number, roles.partner
        bodies = Bodies.drawn(table.kind[number])
        acts, stand = _Pace.drawn(table, roles), _Stand.drawn(roles)
        for values in (acts.pace, acts.start, *vars(stand).values()):
            values[partner] = values[roles.lead[partner]]
        times = time[roles.clip]
        phase = acts.start[:, None] + acts.pace[:, None] * times
        own = torch.where(partner[:, None, None], table.partner[number], table.channels[number])
        begin, end = bodies.posed(channels_at(own, phase, acts.vigour))
        gap = channels_at(table.gap[number][:, None], phase, torch.ones(len(number), 1))[..., 0]
        gap = torch.where(roles.paired[:, None], gap / 2, torch.zeros(()))
        active = ~acts.idle
        spun = 2 * math.pi * table.spin[number][:, None] * phase[..., None]
        walk = table.walk[number] * active * torch.exp(0.2 * torch.randn(len(number)))
        walked = walk[:, None] * times
        seen = rotations(stand.tilt, "x") @ rotations(stand.turn, "y")  # (F, 3, 3)
        facing = rotations(torch.where(partner, math.pi, 0.0), "y")[:, None]
        heading = seen[:, None] @ facing[..., 2:]  # (F, 1, 3, 1)
        turned = seen[:, None] @ facing @ tumbled(spun * active[:, None, None])  # (F, T, 3, 3)
        ahead = (heading * (walked - gap)[..., None, None])[..., 0]  # (F, T, 3)
        begin, end = (
            (turned[:, :, None] @ points[..., None])[..., 0] + ahead[:, :, None]
            for points in (begin, end)
        )
        flat = (heading * walked[..., None, None])[:, :, :2, 0] * stand.scale[:, None, None]
        flat = flat * torch.stack([stand.mirror, -torch.ones_like(stand.mirror)], 1)[:, None]
        depth = stand.scale + torch.where(partner, 1e-3, 0.0)
        ranks = torch.argsort(torch.argsort(depth + 100 * roles.clip)) - roles.lead
        return cls(begin, end, bodies.radius, roles.clip, ranks, stand, flat[roles.starts])

    def seen(self, camera: _Camera, side: int) -> Capsules:
        """Returns the figures as the camera sees them, in pixels."""
        scale, mirror = self.stand.scale, self.stand.mirror
        grow = scale[:, None, None, None]
        across = torch.stack([mirror, -torch.ones_like(mirror)], 1)[:, None, None]

        def screen(points: Tensor) -> Tensor:
            flat = points[..., :2] * across * grow + self.stand.place[:, None, None]
            return (camera.of(flat, self.clip) + 1) * side / 2

        zoom = camera.zoom[self.clip]
        radius = self.radius[:, None] * scale[:, None, None] * zoom[..., None] * side / 2
        depth = (self.begin + self.end)[..., 2]
        num = len(self.clip)
        looks = torch.randn(num, 4, 3)  # skin, shirt, trousers, and what differs from part to part
        which = torch.tensor([1, 0, 1, 1, 2, 2, 0, 0, 2, 2])
        colour = looks[:, which] + 0.35 * torch.randn(num, NUM_PARTS, 3)
        stripes = torch.rand(num, NUM_PARTS, 2) * 2 * math.pi
        stripes[..., 0] *= 3 * torch.rand(num, 1)
        contrast = 0.6 * torch.rand(num, 1) * torch.randn(num, 3)
        return Capsules(
            begin=screen(self.begin),
            end=screen(self.end),
            radius=radius.clamp(min=0.3),
            depth=depth,
            colour=0.8 * colour,
            stripes=stripes,
            contrast=contrast,
            shade=0.4 * torch.randn(num),
            clip=self.clip,
            layer=self.layer,
        )


@dataclass(frozen=True)
class _Camera:
    """How cameras move; (B, T) each. A frame reaches from -1 to 1."""

    x: Tensor  # what the middle of the frame shows
    y: Tensor
    roll: Tensor  # radians
    zoom: Tensor
    track: Track  # of the background's texture

    @classmethod
    def drawn(cls, cast: _Cast, time: Tensor) -> _Camera:
        batch, num = time.shape
        moves = (torch.rand(batch, 1) < 0.5).float()
        heading, speed = 2 * math.pi * torch.rand(batch, 1), 0.8 * torch.rand(batch, 1).square()
        follows = (torch.rand(batch, 1, 1) < 0.5).float()
        walked = cast.walked * follows
        shakes = (torch.rand(batch, 1) < 0.25).float() * 0.02
        stalls = time.diff(dim=1, prepend=time[:, :1] - 1) == 0

        def shake() -> Tensor:
            drawn = torch.randn(batch, num)
            for frame in range(1, num):  # a frame shown twice is the same frame
                drawn[:, frame] = torch.where(
                    stalls[:, frame], drawn[:, frame - 1], drawn[:, frame]
                )
            return shakes * drawn

        x = moves * speed * heading.cos() * time + walked[..., 0] + shake()
        y = moves * speed * heading.sin() * time + walked[..., 1] + shake()
        roll = 0.1 * moves * torch.randn(batch, 1) * time + 0.3 * shake()
        zoom = torch.exp(0.12 * moves * torch.randn(batch, 1) * time)
        cos, sin = roll.cos(), roll.sin()
        size = 1.5 + 1.5 * torch.rand(batch, 1)
        track = Track(-zoom * (cos * x - sin * y), -zoom * (sin * x + cos * y), roll, size * zoom)
        return cls(x, y, roll, zoom, track)

    def of(self, points: Tensor, clip: Tensor) -> Tensor:
        """Maps points (F, T, P, 2) of the scene to the frame."""
        x = points[..., 0] - self.x[clip][..., None]
        y = points[..., 1] - self.y[clip][..., None]
        cos, sin = self.roll.cos()[clip][..., None], self.roll.sin()[clip][..., None]
        return (
            torch.stack([cos * x - sin * y, sin * x + cos * y], -1)
            * self.zoom[clip][..., None, None]
        )
