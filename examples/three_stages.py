"""The three stages from Python, cell by cell: `python examples/three_stages.py [VIDEOS [STEPS]]`

VIDEOS is a folder with a subfolder for each class, or with a labels.csv; `make demo` renders the
one that is taken where none is given. VS Code, PyCharm and Jupytext open this file as a notebook.
"""

# %% Names and places
import logging
import sys

import matplotlib.pyplot as plt
import ray
import torch

from data_prep import PrepSettings, shard
from dynamonet import ClipReader, DynamoNet, ShardSet, export
from dynamonet.video.transforms import denormalise
from finetune import FinetuneSettings, PredictSettings, finetune, predict
from pretrain import PretrainSettings, pretrain

videos = sys.argv[1] if len(sys.argv) > 1 else "data/motion_videos"
steps = int(sys.argv[2]) if len(sys.argv) > 2 else 130  # two cores do one in about half a second
# one Ray for all stages; without it each starts and ends its own
ray.init(include_dashboard=False, logging_level=logging.ERROR, log_to_driver=False)

# %% Stage 1: shards. Settings are typed; a file of configs/ gives those of the demo.
prepared = shard(
    PrepSettings.from_config("tiny", source=videos, dataset="folder", output="example")
)
shards = ShardSet.open(prepared.folder.path)  # later, or elsewhere
print(f"{len(shards)} segments of the classes {', '.join(shards.classes)}")

# %% Look at a clip: (1, 3, T, H, W), normalised as the model wants it
clip = ClipReader(shards, num_frames=8, frame_px=48)[0].render()
frames = denormalise(clip)[0, :, ::2].permute(2, 1, 3, 0).flatten(1, 2)  # side by side
plt.imsave("clip.png", frames.clamp(0, 1).numpy())

# %% Stage 2: pretraining, which looks at no label
learnt = pretrain(
    PretrainSettings.from_config("tiny", shards="example", max_steps=steps, clips={"flip": False})
)
print(f"skill {learnt.run.metrics('val/')['skill']:.2f}: 0 = a copy of the last frame, 1 = perfect")

# %% The model by itself: its filters turn each frame into the next
model = DynamoNet.from_pretrained(learnt.model)
with torch.inference_mode():
    output = model(clip)
print(output)
print(f"filters of the first frame sum to {output.filters[0, 0, 0].sum(0).mean():.2f}")

# %% Stage 3: a classifier from a quarter of the labels
tuned = finetune(
    FinetuneSettings.from_config(
        "tiny", shards="example", pretrained=str(learnt.model), max_steps=max(1, steps // 3)
    )
)
print(f"top-1 {tuned.metrics['top1']:.1%} of {tuned.metrics['videos']:.0f} test videos")

# %% Use it: on video files, and as one file for elsewhere
found = predict(PredictSettings(model=str(tuned.model), videos=(videos,)))
for video in found.videos[:3]:
    print(f"{video.video}: {video.top[0].class_name}, {video.top[0].probability:.0%}")
print(export(tuned.model, "motion.pt2"))
