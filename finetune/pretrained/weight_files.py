"""Reading a file of weights that others wrote, without running anything in it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dynamonet.errors import UserError

SUFFIXES = (".pth", ".pt", ".pyth", ".bin", ".tar", ".ckpt", ".safetensors")
WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Reads the tensors of a .safetensors file, or of one that torch.save wrote, onto the CPU.

    A checkpoint is searched for its weights under the usual keys, e.g. `state_dict`.

    Raises:
        UserError: damaged, holds objects besides numbers, or no named tensors.
    """
    content = _load(path)
    for name in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
    entries = content if isinstance(content, dict) else {}
    tensors = {str(key): value for key, value in entries.items() if isinstance(value, Tensor)}
    if not tensors:
        names = ", ".join(str(key) for key in list(entries)[:6])
        what = f"a dict of {names}" if names else f"a {type(content).__name__}"
        raise UserError(
            f"{path}: no weights here but {what}. Expected tensors by name, at the top or under "
            f"{', '.join(WRAPPERS)}"
        )
    return tensors


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # both libraries raise many kinds
        refused = re.search(
            r"(?:GLOBAL|Unsupported (?:class|global):?) (?:GLOBAL )?([\w.]+)", str(error)
        )
        if refused is None:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(
                f"{path}: damaged, or not a file of weights ({reason}). Expected .safetensors, or "
                "what torch.save writes"
            ) from None
        raise UserError(
            f"{path}: holds {refused[1]} besides numbers; unpickling it could run code, so it "
            "is not done. If you trust its maker, keep the weights alone:\n"
            f'  python -c "import torch; c = torch.load({str(path)!r}, weights_only=False); '
            "torch.save(c['state_dict'], 'weights.pth')\""
        ) from None
