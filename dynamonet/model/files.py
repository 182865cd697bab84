"""A model on disk or on a hub: weights (safetensors) and the JSON that rebuilds it.

Nothing is unpickled: safetensors hold numbers, the description is JSON.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dynamonet.digest import digest_of_stream
from dynamonet.errors import UserError, need

FORMAT_VERSION = 3
WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"
FOREIGN_DESCRIPTION = "config.json"  # of a model that transformers saved
WEIGHTS_DIGEST = "weights_digest"  # key in the description
MODEL = "model"  # folder of the finished model in that of its run
LOSS = "loss"  # key in the description of a pretrained model: how frames were compared
_OWN_KEYS = ("format_version", WEIGHTS_DIGEST, "model")
_MOTION = Path(__file__).parent / "motion"  # a folder for each version
# models that the package brings
BROUGHT = {"motion": _MOTION / "2", "motion@1": _MOTION / "1", "motion@2": _MOTION / "2"}
MODEL_CARD = "README.md"  # on the hub
_CARD = """---
library_name: dynamonet
pipeline_tag: video-classification
tags: [video, self-supervised, 3d-cnn]
---
A 3D-CNN with dynamic motion filters. What it is, which clips it was trained on and where it comes
from is in `model.json`.

```python
from dynamonet import DynamoNet

model = DynamoNet.from_pretrained("{repo_id}")
```
"""
_HUB_ID = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(@(?P<revision>[\w.-]+))?")


def write_model(folder: Path, weights: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Writes a model into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    plain = {name: value.contiguous() for name, value in weights.items()}
    save_file(plain, folder / WEIGHTS, metadata={"format": "pt"})
    head = {"format_version": FORMAT_VERSION, WEIGHTS_DIGEST: weights_digest(folder)}
    text = json.dumps({**head, **description}, indent=2)
    (folder / DESCRIPTION).write_text(text + "\n", "utf-8")


def facts(description: dict[str, Any]) -> dict[str, Any]:
    """Returns what a description holds beside the architecture and the file's own keys."""
    return {key: value for key, value in description.items() if key not in _OWN_KEYS}


def weights_digest(folder: Path) -> str:
    """Returns the BLAKE2b-128 of a model's weights file."""
    with (folder / WEIGHTS).open("rb") as file:
        return digest_of_stream(file)


def locate(place: str | Path) -> Path:
    """Returns a model's folder; a Hugging Face hub id is downloaded, once.

    Args:
        place: `motion`, the model that the package brings, or `motion@1`, an older one; a folder,
            or that of a run; or `owner/name` or `owner/name@revision` on the hub.

    Raises:
        UserError: neither; or it looks like a hub id and `huggingface_hub` is not installed.
    """
    if str(place) in BROUGHT:
        return BROUGHT[str(place)]
    folder = in_run(Path(place).expanduser().absolute())
    match = None if folder.exists() else _HUB_ID.fullmatch(str(place))
    if match is None:
        return folder
    purpose = f"{place}: no such folder. To take it for a model on the Hugging Face hub"
    hub = need("huggingface_hub", "hub", purpose)
    repo, revision = match["repo"], match["revision"]
    try:
        file = hub.hf_hub_download(repo, WEIGHTS, revision=revision)
        try:
            hub.hf_hub_download(repo, DESCRIPTION, revision=revision)
        except hub.errors.EntryNotFoundError:
            hub.hf_hub_download(repo, FOREIGN_DESCRIPTION, revision=revision)
    except Exception as error:  # the library raises its own, requests' and the system's errors
        raise UserError(
            f"{place}: no folder here and cannot be downloaded from the hub: {error}"
        ) from None
    return Path(file).parent


def in_run(folder: Path) -> Path:
    """Returns the folder of the finished model where one of a run is given, else the folder."""
    inner = folder / MODEL
    here = (folder / DESCRIPTION).is_file() or not (inner / DESCRIPTION).is_file()
    return folder if here else inner


def upload(
    folder: Path, repo_id: str, *, commit_message: str, private: bool | None, token: str | None
) -> str:
    """Uploads a model's folder to the Hugging Face hub, with a model card; returns the address.

    Raises:
        UserError: `huggingface_hub` is not installed, or the hub refuses.
    """
    purpose = "Models are put on the Hugging Face hub by its own library"
    hub = need("huggingface_hub", "hub", purpose)
    (folder / MODEL_CARD).write_text(_CARD.format(repo_id=repo_id), "utf-8")
    api = hub.HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        done = api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=commit_message)
    except Exception as error:  # the library raises its own, requests' and the system's errors
        raise UserError(
            f"{repo_id}: cannot be uploaded to the hub: {error}", "Check `hf auth whoami`"
        ) from None
    return done.commit_url


def read_description(folder: Path) -> dict[str, Any]:
    """Reads the JSON beside a model's weights.

    Raises:
        UserError: no such file, damaged, or written by a newer version.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise UserError(
            f"{folder}: no model here (expected {DESCRIPTION} and {WEIGHTS}, as pretraining and "
            "fine-tuning write them)"
        )
    try:
        description = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged, not JSON: {error}") from None
    if not isinstance(description, dict) or not isinstance(description.get("model"), dict):
        raise UserError(f"{path}: expected a JSON object with the key `model`")
    version = description.get("format_version")
    model = description["model"]
    if version in (1, 2) and "use_dmr" in model:  # knew one way to read filters
        model["reads"] = "dmr" if model.pop("use_dmr") else "features"
    if version == 1:  # knew one input
        description["model"] = {"input": "rgb", **model}
    elif version not in (2, FORMAT_VERSION):
        raise UserError(
            f"{path}: model format {version!r}; this version reads 1 to {FORMAT_VERSION}. "
            "Update dynamonet, or save the model again with this version."
        )
    return description


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Reads a model's weights.

    Raises:
        UserError: no such file, or damaged.
    """
    path = folder / WEIGHTS
    try:
        return _of_heads(load_file(path))
    except FileNotFoundError:
        raise UserError(f"{path}: missing; the checkpoint is incomplete") from None
    except Exception as error:  # safetensors raises its own untyped errors
        raise UserError(f"{path}: damaged: {error}") from None


def _of_heads(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Renames the classifier's weights of format 2, which had one head, in two norms."""
    old = [
        name for name in weights if re.match(r"classifier\.(norm_features|norm_dmr|linear)", name)
    ]
    found = {name: value for name, value in weights.items() if name not in old}
    for name in old:
        part, value = name.split(".")[1:]
        whole = weights[name]
        if part == "norm_dmr":
            continue
        beside = weights.get(f"classifier.norm_dmr.{value}")
        if part == "norm_features" and beside is not None and whole.ndim:
            whole = torch.cat([whole, beside])
        found[f"classifier.heads.0.{'linear' if part == 'linear' else 'norm'}.{value}"] = whole
    return found
