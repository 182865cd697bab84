"""Batches on their way to a GPU, in a stream of their own beside what the device computes."""

from __future__ import annotations

import torch

from dynamonet.video.transforms import ClipBatch


class Copier:
    """Copies batches to a device; elsewhere than on CUDA it leaves them as they are."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def copied(self, batch: ClipBatch) -> ClipBatch:
        """Returns a batch whose copy the device's work waits for, and the host does not."""
        if self.stream is None:
            return batch
        with torch.cuda.stream(self.stream):
            moved = batch.to(self.device)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self.stream)
        for tensor in (moved.pixels, moved.label, moved.colour):
            if tensor is not None:
                tensor.record_stream(computing)  # else its memory is given away too early
        return moved
