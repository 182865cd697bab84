"""Makes the network that the package brings, `motion`: `make motion-network`, two hours.

Renders videos, makes shards of them and pretrains on them and on drawn figures, by the commands
that a user has for real video: small clips first, then longer and larger ones. It has seen no frame
of a real video, and nobody's licence stands in the way of using it. What is cut off goes on where
it was when the command is given again.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from dynamonet.command_line import load
from dynamonet.errors import run_entry
from dynamonet.settings import Settings

VIDEOS = 4000
PHASES = {  # runs of `configs/pretrain/motion.yaml`, each from where the one before it ended
    "motion-8x48": "",
    "motion-16x64": "--model.num_frames 16 --model.frame_px 64 --clips.canvas_px 64 "
    "--loader.batch_size 8 --max_steps 1200 --optimizer.lr 0.001",
}
_KEPT = ("stage", "frames", "clips", "loss")  # of what the run says about itself; the rest is local


class MotionNetworkSettings(Settings):
    """Renders videos, pretrains on them, and puts the model into the package."""


def main(argv: list[str]) -> None:
    """Makes the network; see --help."""
    load(MotionNetworkSettings, argv, prog="python -m demo.motion_network")
    from data_prep.shard import main as shard
    from demo.rendered_videos import write_rendered_videos
    from dynamonet import cluster
    from pretrain import run as pretrain

    console, videos = Console(), Path("data/rendered_videos")
    if not videos.is_dir():
        console.print(f"{videos}: rendering {VIDEOS:,} videos")
        growing = videos.with_name(f"{videos.name}.growing")
        shutil.rmtree(growing, ignore_errors=True)
        write_rendered_videos(growing, videos=VIDEOS)
        growing.rename(videos)
    with cluster.connected():
        near = ("--near_duplicates", "off")  # textures are alike, and their motion is not
        shard(["--config", "tiny", "--source", str(videos), "--output", "rendered", *near])
        start = "none"
        for name, words in PHASES.items():
            how = ["--config", "motion", "--shards", "rendered", "--pretrained", start]
            start = str(pretrain.main([*how, "--name", name, *words.split()]).model)
    console.print(f"package  {bring(Path(start))}")


def bring(model: Path) -> Path:
    """Puts a model into the package in half precision, with nothing of the place it was made at."""
    from dynamonet.model.files import BROUGHT, facts, read_description, read_weights, write_model
    from dynamonet.tracking.seen import FILE as TRAINED_ON
    from dynamonet.training.checkpoint.state import read_origin

    folder, description = BROUGHT["motion"], read_description(model)
    said = facts(description)
    origin = read_origin(model)
    assert origin is not None
    sets = tuple(replace(use, path="") for use in origin.datasets)
    public = replace(
        origin, tracking_uri="", folder="", model="", weights="", datasets=sets, parents=()
    )
    head = {key: said[key] for key in _KEPT} | {"run": public.to_json()}
    halves = {
        name: value.half() if value.ndim > 1 else value  # statistics stay exact
        for name, value in read_weights(model).items()
    }
    write_model(folder, halves, {"model": description["model"], **head})
    shutil.copy2(model / TRAINED_ON, folder)
    return folder


if __name__ == "__main__":
    run_entry(main)
