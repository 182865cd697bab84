"""Checks of this machine: versions, decoder, devices, precision."""

from __future__ import annotations

import io
import platform
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from dynamonet.doctor.check import Check, PreflightSettings
from dynamonet.model.config import NetworkConfig

SHOWN = "torch torchvision ray mlflow pyarrow webdataset av pytorchvideo".split()
DRIVER = Path("/proc/driver/nvidia/version")  # there when the kernel's NVIDIA driver is loaded
LARGEST_ERROR = 12.0  # mean, of 255; H.264 at crf 23 was measured to differ by 0.9


def versions(settings: PreflightSettings) -> list[Check]:
    """Compares Python and the installed packages with what this package asks for."""
    try:
        own = metadata.distribution("dynamonet")
    except metadata.PackageNotFoundError:
        remedy = "pip install -e ."
        return [Check("fail", "versions", "dynamonet is not installed as a package", remedy)]
    installed, wrong = [f"python {platform.python_version()}"], []
    if platform.python_version() not in SpecifierSet(own.metadata["Requires-Python"] or ""):
        wrong.append(f"python {own.metadata['Requires-Python']} required, {installed[0]} found")
    for line in own.requires or []:
        wanted = Requirement(line)
        if wanted.marker and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(wanted.name)
        except metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name}{wanted.specifier} required, none found")
            continue
        if wanted.name in SHOWN:
            installed.append(f"{wanted.name} {version}")
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name}{wanted.specifier} required, {version} found")
    if wrong:
        remedy = "pip install -e . in the environment that runs the stages"
        return [Check("fail", "versions", "; ".join(wrong), remedy)]
    return [Check("pass", "versions", ", ".join(installed))]


def decoder(settings: PreflightSettings) -> list[Check]:
    """Encodes a few frames as stage 1 does and decodes them as the readers do."""
    import av
    import numpy as np

    from dynamonet.video.decode import decode_pixels

    ramp = np.linspace(16, 235, 64, dtype=np.uint8)
    frames = [np.roll(np.tile(ramp, (72, 1)), 4 * t, axis=1) for t in range(8)]  # (48 * 3/2, 64)
    for frame in frames:
        frame[48:] = 128
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="yuv420p")))
        container.mux(stream.encode(None))
    pixels = decode_pixels(file.getvalue(), np.arange(len(frames)))
    wanted = np.stack([frame[:48, :, None] for frame in frames]).astype(np.float64)
    error = float(np.abs(pixels - (wanted - 16) * 255 / 219).mean())
    which = f"PyAV {metadata.version('av')}, libavcodec {_dotted(av.library_versions)}"
    if not error < LARGEST_ERROR:
        text = f"{which}: H.264 frames come back wrong by {error:.0f} of 255 on average"
        return [Check("fail", "decoder", text, "pip install --force-reinstall av")]
    return [Check("pass", "decoder", f"{which}: H.264 written and read back")]


def device(settings: PreflightSettings) -> list[Check]:
    """Tells the cores and GPUs that are here, and whether bf16 is fast on them."""
    import torch

    from dynamonet.training.numerics.precision import fastest_format

    cores = f"{local_resources()['CPU']:.0f} CPU cores"
    if not torch.cuda.is_available():
        fast = fastest_format(torch.device("cpu"))
        text = f"{cores}, no GPU; bf16 {'in hardware' if fast == 'bf16' else 'is slow here'}"
        if DRIVER.is_file():
            remedy = "install the torch build for this driver's CUDA version (pytorch.org)"
            return [Check("warn", "device", f"{text}; an NVIDIA driver, but no CUDA", remedy)]
        return [Check("pass", "device", text)]
    cards = []
    for index in range(torch.cuda.device_count()):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        cards.append(f"{torch.cuda.get_device_name(index)} ({memory:.0f} GiB)")
    fast = fastest_format(torch.device("cuda"))
    return [Check("pass", "device", f"{cores}, {', '.join(cards)}; {fast} in hardware")]


def precision(settings: PreflightSettings) -> list[Check]:
    """Runs the model's 3D convolutions in the format of the training and in fp32.

    On the very shapes of the training, so that its own check finds the answers remembered.
    """
    import torch

    from dynamonet.model.network import DynamoNet
    from dynamonet.training.distributed.rank import Rank
    from dynamonet.training.numerics.precision import choose_precision, fastest_format

    gpu = torch.cuda.is_available() and settings.device != "cpu"
    where = torch.device("cuda" if gpu else "cpu")
    config: NetworkConfig = settings.model
    model = DynamoNet(config).to(where)
    model = model.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    clips = max(1, settings.loader.batch_size // settings.num_workers)
    shape = (clips, 3, config.num_frames, config.frame_px, config.frame_px)
    clip = torch.zeros(shape, device=where)
    rank = Rank(0, 1, where)
    chosen = choose_precision(model, clip, settings.precision, rank, settings.wrong_gradients)
    text = f"on {where.type}: {chosen}"
    if chosen.dtype == torch.bfloat16 and fastest_format(where) != "bf16":
        remedy = "set precision to auto; bf16 is slower than fp32 on this device"
        return [Check("warn", "precision", text, remedy)]
    if "fp32" in chosen.forms.values():
        remedy = "nothing to do for right results; for speed try another torch version"
        return [Check("warn", "precision", text, remedy)]
    return [Check("pass", "precision", text)]


def local_resources() -> dict[str, float]:
    """Returns what a private Ray on this machine would have."""
    import torch
    from ray._private.utils import get_num_cpus  # knows of containers' limits

    return {"CPU": get_num_cpus(), "GPU": float(torch.cuda.device_count())}


def _dotted(versions: dict[str, tuple[int, ...]]) -> str:
    return ".".join(str(part) for part in versions["libavcodec"])
