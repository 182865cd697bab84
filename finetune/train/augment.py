"""Changes of labelled training clips, on their device: colours, boxes, mixtures.

Every change is the same for all frames of a clip, those beyond it included, so that the next frame
can still be predicted from the one before.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tf

from dynamonet.video.transforms import denormalise, normalise
from finetune.settings import AugmentSettings

# name -> (frames (T, 3, H, W) in [0, 1], strength from -1 to 1) -> frames. Those of RandAugment
# (Cubuk et al. 2020) that move nothing and do not depend on the single frame, and gamma.
PHOTOMETRIC: dict[str, Callable[[Tensor, float], Tensor]] = {
    "brightness": lambda clip, s: tf.adjust_brightness(clip, 1 + 0.9 * s),
    "saturation": lambda clip, s: tf.adjust_saturation(clip, 1 + 0.9 * s),
    "sharpness": lambda clip, s: tf.adjust_sharpness(clip, 1 + 0.9 * s),
    "gamma": lambda clip, s: tf.adjust_gamma(clip, math.exp(s)),
    "posterize": lambda clip, s: tf.posterize(clip, 8 - round(5 * abs(s))),
    "solarize": lambda clip, s: tf.solarize(clip, 1 - abs(s)),
}


def augment(
    frames: Tensor, labels: Tensor, num_classes: int, settings: AugmentSettings
) -> tuple[Tensor, Tensor]:
    """Changes a batch as the settings say; random by torch's own generator.

    Args:
        frames: (B, 3, T, H, W), normalised.
        labels: (B,).

    Returns:
        Frames of the same shape, and shares of the classes (B, N).
    """
    if settings.photometric:
        frames = torch.stack([_recoloured(clip, settings) for clip in frames])
    if settings.erase:
        box = v2.RandomErasing(settings.erase)  # by 0: the mean colour
        frames = torch.stack([box(clip) for clip in frames])
    mixers = [
        kind(alpha=alpha, num_classes=num_classes)
        for kind, alpha in ((v2.MixUp, settings.mixup), (v2.CutMix, settings.cutmix))
        if alpha
    ]
    shares = F.one_hot(labels, num_classes).float()
    if mixers:
        mixer = mixers[int(torch.randint(len(mixers), ()))]
        video, shares = mixer(tv_tensors.Video(frames), labels)
        frames = video.as_subclass(Tensor)
    return frames.contiguous(memory_format=torch.channels_last_3d), shares


def _recoloured(clip: Tensor, settings: AugmentSettings) -> Tensor:
    """Applies some of the photometric changes to a clip (3, T, H, W), each at most once."""
    picture = denormalise(clip).transpose(0, 1)
    names = list(PHOTOMETRIC)
    for place in torch.randperm(len(names))[: settings.photometric].tolist():
        strength = settings.photometric_strength * (2 * float(torch.rand(())) - 1)
        picture = PHOTOMETRIC[names[place]](picture, strength)
    return normalise(picture.clamp(0, 1)).transpose(0, 1)
