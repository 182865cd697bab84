from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from data_prep.settings import PrepSettings
from dynamonet.errors import SettingsError, UserError
from dynamonet.settings import (
    CONFIG_ROOT,
    Settings,
    flatten,
    keys,
    load,
    names,
    read_yaml,
    to_yaml,
    validate,
)
from dynamonet.storage import absolute
from finetune.settings import FinetuneSettings
from pretrain.settings import PretrainSettings

STAGES = {"data_prep": PrepSettings, "pretrain": PretrainSettings, "finetune": FinetuneSettings}
CONFIGS = [(stage, name) for stage in STAGES for name in names(stage)]


def pretraining(*words: str) -> PretrainSettings:
    return load(
        PretrainSettings, words, stage="pretrain", prog="run", description="d", examples="e"
    )


def test_the_command_line_wins_over_the_file_which_wins_over_the_default(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("seed: 3\noptimizer: {lr: 1e-4, weight_decay: 0.1}\n")
    found = pretraining("--config", str(file), "--optimizer.lr", "0.5")
    assert (found.seed, found.optimizer.lr, found.optimizer.weight_decay) == (3, 0.5, 0.1)
    assert found.optimizer.kind == "adamw"


def test_switches_take_a_word_or_stand_alone() -> None:
    assert pretraining("--resume").resume
    assert not pretraining("--no-resume").resume
    assert not pretraining("--resume", "false").resume
    assert not pretraining("--clips.flip", "false", "--resume", "true").clips.flip


def test_misspelt_options_name_the_closest_known_one_all_at_once() -> None:
    with pytest.raises(SettingsError) as caught:
        pretraining("--optimzer.lr", "1", "--lr", "2", "--qqq=3")
    text = str(caught.value)
    assert "--optimzer.lr: unknown option; did you mean optimizer.lr?" in text
    assert "--lr: unknown option; did you mean optimizer.lr?" in text
    assert "--qqq: unknown option; --help lists all keys" in text


def test_every_wrong_key_of_a_file_is_named_with_what_was_found(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("sed: 3\noptimizer: {lr: -1, kind: adam}\nmodel: {trunk: {dpeth: 18}}\n")
    with pytest.raises(SettingsError) as caught:
        pretraining("--config", str(file))
    text = str(caught.value)
    assert str(file) in text
    assert "sed: unknown key; did you mean seed?" in text
    assert "optimizer.lr: Input should be greater than 0 (found -1)" in text
    assert "optimizer.kind: Input should be 'sgd' or 'adamw' (found 'adam')" in text
    assert "model.trunk.dpeth: unknown key; did you mean model.trunk.depth?" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [("[1, 2]", "expected `key: value` lines"), ("a: [1", "not a YAML file")],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "own.yaml").write_text(content)
    with pytest.raises(SettingsError, match=message):
        pretraining("--config", str(tmp_path / "own.yaml"))


def test_an_unknown_configuration_lists_those_there_are() -> None:
    with pytest.raises(SettingsError, match=r"configs/pretrain/ has only: .*tiny"):
        pretraining("--config", "tinny")


def test_help_shows_every_key_with_its_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pretraining("--help")
    text = capsys.readouterr().out
    leaves = [
        key
        for key in keys(PretrainSettings)
        if not any(other.startswith(key + ".") for other in keys(PretrainSettings))
    ]
    assert not [key for key in leaves if not re.search(rf"--{re.escape(key)}\b", text)]
    assert "(default: 0.001)" in text and "tiny" in text


def test_a_printed_configuration_reads_back_as_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pretraining("--config", "paper", "--seed", "7", "--print-config")
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert pretraining("--config", str(file)) == pretraining("--config", "paper", "--seed", "7")


@pytest.mark.parametrize(("stage", "name"), CONFIGS)
def test_committed_configurations_are_complete_and_valid(stage: str, name: str) -> None:
    model = STAGES[stage]
    settings = validate(model, read_yaml(name, stage), origin=name)
    printed = yaml.safe_load(to_yaml(settings))
    assert yaml.safe_load((CONFIG_ROOT / stage / f"{name}.yaml").read_text()) == printed


def test_every_setting_is_described() -> None:
    def undescribed(model: type[Settings]) -> list[str]:
        return [name for name, field in model.model_fields.items() if not field.description]

    assert not [key for model in STAGES.values() for key in undescribed(model)]


def test_settings_are_frozen_and_flatten_to_dotted_keys() -> None:
    class Inner(Settings):
        rate: float = Field(default=0.1, description="d")

    class Outer(Settings):
        inner: Inner = Field(default=Inner(), description="d")

    assert flatten(Outer()) == {"inner.rate": 0.1}
    with pytest.raises(ValueError, match="frozen"):
        Outer().inner = Inner()


def test_shards_and_results_move_by_setting_and_by_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PretrainSettings()
    assert settings.runs_path() == str(tmp_path / "runs")
    assert settings.shards_path("own") == str(tmp_path / "data/shards/own")
    assert settings.shards_path("./own") == str(tmp_path / "own")
    assert settings.shards_path("s3://bucket/own") == "s3://bucket/own"
    monkeypatch.setenv("DYNAMONET_RUNS", "/far/runs")
    monkeypatch.setenv("DYNAMONET_SHARDS", "/far/shards")
    assert settings.runs_path() == "/far/runs"
    assert settings.shards_path("own") == "/far/shards/own"
    assert PretrainSettings(runs="/near").runs_path() == "/near"


def test_a_run_name_that_is_no_name_is_refused() -> None:
    with pytest.raises(SettingsError, match="letters, digits"):
        pretraining("--name", "../elsewhere")


def test_relative_paths_are_refused_in_rays_temporary_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "session/runtime_resources/working_dir_files/_ray_pkg_1"
    copy.mkdir(parents=True)
    monkeypatch.chdir(copy)
    with pytest.raises(UserError, match="Give absolute paths"):
        absolute("runs")
    assert absolute("/runs") == "/runs"
