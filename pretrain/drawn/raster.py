"""Draws capsules into frames, and tells what each pixel shows and where that was before.

    canvas (B, T, S, S, 4): RGB, and the number of the part that is seen, 0 = the background

Every part is drawn in a window about as small as it is, the farthest first: most of a frame is
never looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

LAYERS = 3  # figures of a clip
_WINDOWS = (8, 12, 16, 24)
_PURE = 0.03  # how far a pixel's number may be from a whole one: edges are mixed
_SHORT_PX = 0.5  # a part that points at the camera has no direction


@dataclass(frozen=True)
class Capsules:
    """Figures on the screen, F of them, P parts each; pixels."""

    begin: Tensor  # (F, T, P, 2), (x, y)
    end: Tensor  # (F, T, P, 2)
    radius: Tensor  # (F, T, P)
    depth: Tensor  # (F, T, P), greater is nearer
    colour: Tensor  # (F, P, 3), normalised
    stripes: Tensor  # (F, P, 2): radians from end to end of a part, and where they begin
    contrast: Tensor  # (F, 3), of the stripes
    shade: Tensor  # (F,), from one side of a part to the other
    clip: Tensor  # (F,) int64
    layer: Tensor  # (F,) int64: 0 is drawn first

    def pieces(self, side: int) -> Iterator[Pieces]:
        """Yields the parts that are in sight, by the size of their windows."""
        figures, num, parts = self.radius.shape
        rank = self.layer[:, None, None] * parts + self.depth.argsort(2).argsort(2)
        number = 1 + self.layer[:, None, None] * parts + torch.arange(parts)
        frame = self.clip[:, None, None] * num + torch.arange(num)[:, None]
        whole = (figures, num, parts)
        looks = torch.cat(
            [
                self.colour,
                self.contrast[:, None].expand(-1, parts, -1),
                self.stripes,
                self.shade[:, None, None].expand(-1, parts, -1),
            ],
            -1,
        )
        columns = torch.cat(
            [
                self.begin,
                self.end,
                self.radius[..., None],
                looks[:, None].expand(*whole, -1),
                number.expand(whole)[..., None],
            ],
            -1,
        ).flatten(0, 2)
        place = torch.stack([rank, frame.expand(whole)], -1).flatten(0, 2)
        ends = columns[:, :4].unflatten(1, (2, 2))
        reach = columns[:, 4:5] + 1
        low, high = ends.amin(1) - reach, ends.amax(1) + reach
        sight = ((high > 0) & (low < side)).all(1)
        extent = (high - low).amax(1)
        least = 0
        for window in (*(w for w in _WINDOWS if w < side), side):
            fits = (extent > least) if window == side else (extent > least) & (extent <= window)
            chosen = (sight & fits).nonzero().flatten()
            least = window
            if not len(chosen):
                continue
            chosen = chosen[place[chosen, 0].argsort()]
            middle = ((low + high) / 2)[chosen]
            corner = (middle - window / 2).round().clamp(0, side - window)
            counts = torch.bincount(place[chosen, 0], minlength=LAYERS * parts).tolist()
            yield Pieces(window, columns[chosen], corner, place[chosen, 1], counts)

    def draw(self, canvas: Tensor) -> None:
        """Draws them on a canvas (B, T, S, S, 4); they lie on the CPU."""
        side, flat, ranks = canvas.shape[2], canvas.view(-1, 4), LAYERS * self.radius.shape[2]
        pieces = list(self.pieces(side))
        painted = [each.to(canvas.device).paint(side) for each in pieces]
        if not painted:
            return
        columns = [
            [
                window[column].split(each.counts)
                for window, each in zip(painted, pieces, strict=True)
            ]
            for column in range(3)
        ]
        rows, clear, colour = (
            torch.cat([part.flatten(0, 1) for rank in zip(*windows, strict=True) for part in rank])
            for windows in columns
        )
        sizes = [
            sum(each.counts[rank] * each.window**2 for each in pieces) for rank in range(ranks)
        ]
        for cut in zip(rows.split(sizes), clear.split(sizes), colour.split(sizes), strict=True):
            _put(flat, *cut)


def _put(canvas: Tensor, rows: Tensor, clear: Tensor, colour: Tensor) -> None:
    """Lays pixels over those of a flat canvas; no row comes twice, as ranks have one part a frame.

    Args:
        rows: (N,).
        clear: (N, 1), how much of what is behind shows.
        colour: (N, 4), times the cover.
    """
    if len(rows):
        behind = canvas.index_select(0, rows)
        canvas.index_copy_(0, rows, torch.addcmul(colour, behind, clear))


@dataclass(frozen=True)
class Pieces:
    """Parts in windows of one size, N of them, sorted by rank."""

    window: int
    columns: Tensor  # (N, 15): begin, end, radius, colour, contrast, stripes, shade, number
    corner: Tensor  # (N, 2), (x, y)
    frame: Tensor  # (N,), which of all clips' frames
    counts: list[int]  # of each rank

    def to(self, device: torch.device) -> Pieces:
        """Copies them to a device without waiting for the copies."""
        three = (self.columns, self.corner, self.frame)
        columns, corner, frame = (each.to(device, non_blocking=True) for each in three)
        return Pieces(self.window, columns, corner, frame, self.counts)

    def paint(self, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Paints each part in its window; the frames are `side` pixels wide.

        Returns:
            Rows (N, w * w) of a flat canvas, how much of what is behind shows there
            (N, w * w, 1), and colours and numbers (N, w * w, 4), times the cover.
        """
        begin, end, (radius, *_) = (
            self.columns[:, :2] - self.corner,
            self.columns[:, 2:4] - self.corner,
            self.columns[:, 4:5].unbind(1),
        )
        way = end - begin
        length = way.norm(dim=1).clamp(min=1e-3)
        dx, dy = (way / length[:, None]).unbind(1)
        middle = (begin + end) / 2
        step = torch.arange(self.window, device=begin.device)
        x = step + 0.5 - middle[:, :1]
        y = step + 0.5 - middle[:, 1:]
        dx, dy = dx[:, None], dy[:, None]
        along = (x * dx)[:, None] + (y * dy)[:, :, None]  # (N, w, w)
        across = (x * dy)[:, None] - (y * dx)[:, :, None]
        beyond = along.abs().sub_(length[:, None, None] / 2).clamp_(min=0)
        soft = (2 * radius).clamp(min=1)[:, None, None]  # squares of distances fall so much a pixel
        reach = 0.5 + radius[:, None, None] ** 2 / soft
        cover = beyond.square_().addcmul_(across, across).div_(soft).neg_().add_(reach)
        cover = cover.clamp_(0, 1)[..., None]
        turns, first, shade, number = self.columns[:, 11:].unbind(1)
        phase = along.mul_((turns / length)[:, None, None]).add_(first[:, None, None])
        stripe = phase.sin_()[..., None] * self.columns[:, None, None, 8:11]
        stripe += across.mul_((shade / radius)[:, None, None])[..., None]
        stripe += self.columns[:, None, None, 5:8]
        tags = number[:, None, None, None].expand(*stripe.shape[:3], 1)
        colour = torch.cat([stripe, tags], -1).mul_(cover)
        left, top = self.corner.long().unbind(1)
        rows = (top[:, None] + step)[..., None] * side + (left[:, None] + step)[:, None]
        rows = rows + self.frame[:, None, None] * side**2
        return rows.flatten(1), (1 - cover).flatten(1, 2), colour.flatten(1, 2)


def figure_shift(figures: Capsules, canvas: Tensor, here: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Tells where what is seen at some places was a frame before.

    Args:
        canvas: (B, T, S, S, 4), drawn.
        here: (g, g, 2), middles of the pixels that are asked for, (x, y).

    Returns:
        Displacements (B, T-1, g, g, 2), (x, y) in pixels; where they are known, that is a part is
        seen there and was seen before; and where the background is seen, both (B, T-1, g, g) bool.
    """
    device = canvas.device
    batch, num = canvas.shape[:2]
    parts = figures.radius.shape[2]
    places = here[:, 0, 1].long()
    number = canvas[:, 1:, places][:, :, :, places, 3]
    whole = number.round()
    pure = (number - whole).abs() < _PURE
    states = torch.cat([figures.begin, figures.end, figures.radius[..., None]], -1)
    table = torch.zeros(batch, LAYERS, dtype=torch.int64)
    table[figures.clip, figures.layer] = torch.arange(len(figures.clip))
    states, table = states.to(device).view(-1, 5), table.to(device).view(-1)
    clip, time, row, column = (pure & (whole > 0)).nonzero(as_tuple=True)
    seen = whole[clip, time, row, column].long() - 1
    figure = table[clip * LAYERS + seen // parts]
    index = (figure * num + time) * parts + seen % parts
    before, after = states[index], states[index + parts]

    def axis(state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        way = state[:, 2:4] - state[:, :2]
        length = way.norm(dim=1).clamp(min=1e-3)
        return state[:, :2], length, way / length[:, None]

    (start, length, unit), (old_start, old_length, old_unit) = axis(after), axis(before)
    asked = here[row, column]
    offset = asked - start
    along = (offset * unit).sum(1)
    across = offset[:, 0] * unit[:, 1] - offset[:, 1] * unit[:, 0]
    growth = before[:, 4] / after[:, 4]
    inside = torch.minimum(along.clamp(min=0), length)
    along = inside / length * old_length + (along - inside) * growth
    normal = torch.stack([old_unit[:, 1], -old_unit[:, 0]], 1)
    source = old_start + along[:, None] * old_unit + (across * growth)[:, None] * normal
    told = (torch.minimum(length, old_length) > _SHORT_PX) & shows(
        canvas, clip, time, source, seen + 1
    )
    shift = canvas.new_zeros(*number.shape, 2)
    known = torch.zeros_like(pure)
    shift[clip, time, row, column] = source - asked
    known[clip, time, row, column] = told
    return shift, known, pure & (whole == 0)


def shows(canvas: Tensor, clip: Tensor, time: Tensor, source: Tensor, number: Tensor) -> Tensor:
    """Tells whether frames show a part's number at places (..., 2), (x, y) in pixels."""
    side = canvas.shape[2]
    within = ((source >= 0) & (source < side)).all(-1)
    x, y = source.long().clamp(0, side - 1).unbind(-1)
    return within & ((canvas[clip, time, y, x, 3] - number).abs() < 0.5)
