"""What `import dynamonet` and the three rooms offer."""

from __future__ import annotations

import importlib
import subprocess
import sys
from types import FunctionType

import pytest

import dynamonet
import finetune
from dynamonet.errors import SettingsError
from pretrain import PretrainSettings
from tests.conftest import ROOT

PACKAGES = ("dynamonet", "data_prep", "pretrain", "finetune")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package_offers_what_it_says(package: str) -> None:
    module = importlib.import_module(package)
    for name in module.__all__:
        assert getattr(module, name).__name__ == name


@pytest.mark.parametrize("package", PACKAGES)
def test_importing_a_package_imports_nothing_heavy(package: str) -> None:
    heavy = "{'torch', 'ray', 'mlflow', 'pydantic', 'numpy', 'av', 'rich'}"
    code = f"import sys, {package}; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "set()", done.stderr


def test_a_function_is_not_hidden_by_the_module_of_its_name() -> None:
    for package, name in (("data_prep", "shard"), ("finetune", "predict"), ("dynamonet", "export")):
        module = importlib.import_module(f"{package}.{name}")
        offered = getattr(importlib.import_module(package), name)
        assert isinstance(offered, FunctionType) and offered is getattr(module, name)


def test_what_is_not_offered_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'DynamoNets'"):
        getattr(dynamonet, "Dynamo" + "Nets")
    with pytest.raises(ImportError, match="cannot import name 'tune'"):
        exec("from finetune import tune")
    assert finetune.finetune.__module__ == "finetune.run"


def test_settings_come_from_a_configuration_with_changes() -> None:
    found = PretrainSettings.from_config("tiny", shards="own", optimizer={"lr": 0.5})
    assert (found.shards, found.optimizer.lr) == (("own",), 0.5)
    assert found.model.trunk.width == 16, "the file's own"
    with pytest.raises(SettingsError, match=r"lr_: unknown key; did you mean optimizer\.lr"):
        PretrainSettings.from_config("tiny", optimizer={"lr_": 0.5})
    with pytest.raises(SettingsError, match=r"has only: .*tiny"):
        PretrainSettings.from_config("tinny")
