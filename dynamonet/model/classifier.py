"""What reads classes off the features and the dynamic motion representation."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from dynamonet.model.config import ModelConfig

HEAD_DIM = 64  # of an attention head at least; not studied
MLP_RATIO = 4  # Source: the transformer's


class Classifier(nn.Module):
    """Batch-normalised [pooled features, DMR] -> dropout -> linear.

    Source: the paper concatenates the two; normalising them first is ours.
    """

    def __init__(self, config: ModelConfig, num_classes: int, dim: int, dmr_dim: int) -> None:
        """Args:
        dim: Channels D of the features.
        dmr_dim: Values of the DMR.
        """
        super().__init__()
        self.attention = AttentivePool(dim) if config.pooling == "attentive" else None
        self.norm_features = nn.BatchNorm1d(dim)
        self.norm_dmr = nn.BatchNorm1d(dmr_dim) if config.use_dmr else None
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(dim + (dmr_dim if config.use_dmr else 0), num_classes)
        nn.init.normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, features: Tensor, dmr: Tensor) -> Tensor:
        """Maps features (B, D, t, h, w) and DMR (B, dmr_dim) to logits (B, N)."""
        with torch.autocast(features.device.type, enabled=False):
            if self.attention is None:
                pooled = features.mean((2, 3, 4)).float()
            else:
                pooled = self.attention(features.float())
            parts = [self.norm_features(pooled)]
            if self.norm_dmr is not None:
                parts.append(self.norm_dmr(dmr.float()))
            return self.linear(self.dropout(torch.cat(parts, 1)))


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
