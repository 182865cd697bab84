"""The commands of the project: `dynamonet NAME ...`, or each by its own file in a checkout."""

from __future__ import annotations

from pathlib import Path

# name: the module whose `main(argv)` it runs, and what it does
COMMANDS = {
    "shard": ("data_prep.shard", "stage 1: raw videos -> WebDataset shards with an index"),
    "verify": ("data_prep.verify", "check a set of shards, and repair it"),
    "pretrain": ("pretrain.run", "stage 2: pretraining on unlabelled shards"),
    "finetune": ("finetune.run", "stage 3: a classifier on labelled shards"),
    "measure": ("finetune.measure", "the accuracy of a finished model on a labelled set"),
    "predict": ("finetune.predict", "a finished model on video files"),
    "search": ("finetune.search", "similar, odd and label-worthy videos by their features"),
    "compare": ("finetune.compare", "is one fine-tuned model better than another?"),
    "compare-backbones": (
        "finetune.compare_backbones",
        "which network to start from: own, other people's, foundation models",
    ),
    "label-curve": ("finetune.label_curve", "how many labels pretraining saves"),
    "export": ("dynamonet.export", "a model as ONNX or torch.export archive"),
    "report": ("dynamonet.report.__main__", "one HTML file about a run"),
    "lineage": ("dynamonet.lineage.__main__", "what a model was made from"),
    "doctor": ("dynamonet.doctor.__main__", "is everything there that a pretraining needs?"),
}
_HERE = Path(__file__).resolve().parent
IN_CHECKOUT = not (_HERE / "configs").is_dir()  # a wheel has them inside this package
CONFIG_ROOT = (_HERE.parent if IN_CHECKOUT else _HERE) / "configs"


def command(name: str) -> str:
    """Returns how a command is typed here: `python data_prep/shard.py`, or `dynamonet shard`.

    The files are named in a checkout of the project, the one program where it was installed.
    """
    module = COMMANDS[name][0]
    if not IN_CHECKOUT:
        return f"dynamonet {name}"
    if module.startswith("dynamonet."):
        return f"python -m {module.removesuffix('.__main__')}"
    return f"python {module.replace('.', '/')}.py"


def fill(text: str) -> str:
    """Returns a text with each `{name}` of a command replaced by how that is typed here."""
    return text.format_map({name: command(name) for name in COMMANDS})
