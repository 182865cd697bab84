"""What reads classes off the features and the dynamic motion representation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dynamonet.model.config import ModelConfig
from dynamonet.model.numbers import signed_root

HEAD_DIM = 64  # of an attention head at least; not studied
MLP_RATIO = 4  # Source: the transformer's


class Head(nn.Module):
    """Batch norm -> dropout -> linear."""

    def __init__(self, dim: int, num_classes: int, dropout: float, eps: float = 1e-5) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, eps)
        self.dropout = nn.Dropout(dropout)
        self.linear = nn.Linear(dim, num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, D) to logits (B, N)."""
        return self.linear(self.dropout(self.norm(x)))


class Classifier(nn.Module):
    """Heads that each read something of a clip; the classifier's logits are their mean.

        features   [pooled features]
        dmr        [pooled features, DMR]
        field      [pooled features] and [signed roots of the named numbers of motion]

    Source: the paper concatenates features and DMR; normalising them first is ours, and a head for
    each, because one layer over both was seen to lose what the numbers know.
    """

    def __init__(self, config: ModelConfig, num_classes: int, dim: int, motion_dim: int) -> None:
        """Args:
        dim: Channels D of the features.
        motion_dim: Values M of what is read beside them.
        """
        super().__init__()
        self.config = config
        self.attention = AttentivePool(dim) if config.pooling == "attentive" else None
        pooled = 2 * dim if config.pooling == "mean_std" else dim
        dims = [pooled, motion_dim] if config.reads == "field" else [pooled + motion_dim]
        # numbers of motion are small, and vary by less than the usual eps
        eps = (1e-5, 1e-10)
        self.heads = nn.ModuleList(
            Head(each, num_classes, config.dropout, e) for each, e in zip(dims, eps, strict=False)
        )

    def inputs(self, features: Tensor, motion: Tensor) -> list[Tensor]:
        """Returns what each head reads, (B, ...), of features (B, D, t, h, w) and motion (B, M)."""
        features = features.float()
        if self.attention is not None:
            pooled = self.attention(features)
        elif self.config.pooling == "mean_std":
            pooled = mean_and_std(features)
        else:
            pooled = features.mean((2, 3, 4))
        return self.beside(pooled, motion)

    def beside(self, pooled: Tensor, motion: Tensor) -> list[Tensor]:
        """Returns what each head reads, (B, ...), of pooled features (B, P) and motion (B, M)."""
        if self.config.reads == "features":
            return [pooled]
        if self.config.reads == "field":
            return [pooled, signed_root(motion.float())]
        return [torch.cat([pooled, motion.float()], 1)]

    def forward(self, features: Tensor, motion: Tensor) -> Tensor:
        """Maps features (B, D, t, h, w) and motion (B, M) to the logits of each head (B, H, N)."""
        with torch.autocast(features.device.type, enabled=False):
            return self.of_inputs(self.inputs(features, motion))

    def of_inputs(self, inputs: list[Tensor]) -> Tensor:
        """Returns the logits of each head (B, H, N) of what each reads, see `inputs`."""
        return torch.stack([head(x) for head, x in zip(self.heads, inputs, strict=True)], 1)


def mean_and_std(features: Tensor) -> Tensor:
    """Returns both of each channel of maps (B, D, t, h, w), (B, 2 D)."""
    spread = features.var((2, 3, 4), correction=0).clamp(min=1e-12).sqrt()
    return torch.cat([features.mean((2, 3, 4)), spread], 1)


class AttentivePool(nn.Module):
    """A learnt query q reads the feature map's cells x: y = q + attention(q, x); y + MLP(y).

    12 D^2 parameters. Source: the attentive probe of V-JEPA (Bardes et al. 2024).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        heads = next(n for n in range(max(1, dim // HEAD_DIM), 0, -1) if dim % n == 0)
        self.query = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm_cells = nn.LayerNorm(dim)
        self.attend = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.norm_read = nn.LayerNorm(dim)
        hidden = MLP_RATIO * dim
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))
        nn.init.trunc_normal_(self.query, std=0.02)

    def forward(self, features: Tensor) -> Tensor:
        """Maps features (B, D, t, h, w) to (B, D)."""
        cells = self.norm_cells(features.flatten(2).transpose(1, 2))
        read = self.query[0] + self._attended(cells)
        return read + self.mlp(self.norm_read(read))

    def _attended(self, cells: Tensor) -> Tensor:
        """Returns what `attend` gives for the one query, (B, D) of cells (B, N, D).

        The query goes through the keys' weights W_k, and what it reads through the values' W_v, in
        place of every cell: q W_k x and W_v (sum a x), D / heads times less work. The keys' bias
        adds the same to all cells, which softmax does not see.
        """
        attend, heads = self.attend, self.attend.num_heads
        to_query, to_key, to_value = attend.in_proj_weight.chunk(3)
        query_bias, _, value_bias = attend.in_proj_bias.chunk(3)
        query = (to_query @ self.query[0, 0] + query_bias).view(heads, -1)  # H, d
        asks = torch.einsum("hd,hdx->hx", query, to_key.view(*query.shape, -1))
        shares = (cells @ asks.T / math.sqrt(query.shape[1])).softmax(1)  # B, N, H
        read = torch.einsum("bnh,bnx->bhx", shares, cells)
        values = torch.einsum("bhx,hdx->bhd", read, to_value.view(*query.shape, -1))
        return attend.out_proj(values.flatten(1) + value_bias)
