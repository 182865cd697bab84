"""Spatio-temporal channel correlation: two gates that reweigh the channels of a residual branch."""

from __future__ import annotations

from torch import Tensor, nn

from dynamonet.errors import UserError


class STC(nn.Module):
    """Averages two channel gates and applies them to a feature map.

        z_t = mean over T, H, W of x         (C)      g_t = sigmoid(W2 relu(W1 z_t))
        z_s = mean over H, W of x, flattened (T*C)    g_s = sigmoid(V2 relu(V1 z_s))
        out = (g_t * x + g_s * x) / 2

    The second gate ties its weights to one T. Cost, biases aside: 2 C C/r + T C (T C/r) + (T C/r) C
    parameters.

    Source: STC, ECCV 2018, for the two gates; r = 16 and the ReLU between the linears are ours.
    """

    def __init__(self, channels: int, num_frames: int, reduction: int) -> None:
        """Args:
        num_frames: Temporal size T of the feature map, fixed for this layer.
        reduction: r >= 1; how far each gate narrows before it widens again.
        """
        super().__init__()
        self.channels, self.num_frames = channels, num_frames
        self.temporal_gate = _gate(channels, channels, reduction)
        self.spatial_gate = _gate(channels * num_frames, channels, reduction)

    def forward(self, x: Tensor) -> Tensor:
        """Gates a feature map of shape (B, C, T, H, W); the shape stays.

        Raises:
            UserError: T is not the one the second gate was built for.
        """
        if x.shape[2] != self.num_frames:
            raise UserError(
                f"this STC layer was built for {self.num_frames} temporal steps and got "
                f"{x.shape[2]}: its spatial-channel gate has weights for each step. Use clips of "
                "the length the model was built for, or a trunk with `stc: none`."
            )
        z = x.mean((3, 4))  # (B, C, T)
        gate = self.temporal_gate(z.mean(2)) + self.spatial_gate(z.flatten(1))
        return x * (gate / 2)[:, :, None, None, None].to(x.dtype)


def _gate(inputs: int, channels: int, reduction: int) -> nn.Sequential:
    inner = max(1, inputs // reduction)
    return nn.Sequential(
        nn.Linear(inputs, inner), nn.ReLU(), nn.Linear(inner, channels), nn.Sigmoid()
    )
