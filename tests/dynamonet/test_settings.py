from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from pydantic import Field

from data_prep import verify
from data_prep.settings import PrepSettings
from dynamonet.command_line import (
    CONFIG_ROOT,
    config_names,
    default_config,
    load,
    positional,
    read_yaml,
)
from dynamonet.errors import SettingsError, UserError
from dynamonet.settings import Settings, flatten, keys, section, validate
from dynamonet.storage import absolute
from finetune.evaluation.settings import CompareSettings, MeasureSettings
from finetune.prediction.settings import PredictSettings
from finetune.retrieval.settings import LabelNextSettings, NearestSettings, OutlierSettings
from finetune.series_settings import CurveSettings
from finetune.settings import FinetuneSettings
from pretrain.settings import PretrainSettings

STAGES = {"data_prep": PrepSettings, "pretrain": PretrainSettings, "finetune": FinetuneSettings}
CONFIGS = [(stage, name) for stage in STAGES for name in config_names(stage)]
# every entry that reads settings files, with those it may be given
ENTRIES = [
    (model, name)
    for model, stage in (*((m, s) for s, m in STAGES.items()), (CurveSettings, "finetune"))
    for name in (None, *config_names(stage))
]
OTHERS: list[type[Settings]] = [
    CompareSettings,
    LabelNextSettings,
    MeasureSettings,
    NearestSettings,
    OutlierSettings,
    PredictSettings,
    verify.VerifySettings,
]


def leaves(model: type[Settings]) -> list[str]:
    return [key for key, field in keys(model).items() if section(field) is None]


def pretraining(*words: str) -> PretrainSettings:
    return load(PretrainSettings, words, prog="run")


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
    assert "optimizer.lr: expected greater than 0, found -1" in text
    assert "optimizer.kind: expected 'sgd' or 'adamw' (did you mean adamw?), found 'adam'" in text
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


@pytest.mark.parametrize(("model", "name"), ENTRIES)
def test_help_and_configuration_and_run_agree(
    model: type[Settings], name: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [] if name is None else ["--config", name]

    def read(*more: str) -> Settings:
        return load(model, [*words, *more], prog="run")

    seed = ("--seed", "7") if "seed" in keys(model) else ()
    run = read(*seed)
    values = flatten(run)
    with pytest.raises(SystemExit):
        read(*seed, "--print-config")
    assert validate(model, yaml.safe_load(capsys.readouterr().out), origin="print") == run
    with pytest.raises(SystemExit):
        read(*seed, "--help-all")
    text = " ".join(capsys.readouterr().out.split())
    for key in leaves(model):
        said = re.search(rf"--{re.escape(key)}[ ,].*?\(default: (.*?)\)", text)
        assert said, f"{key} is not in --help"
        if key in values:
            value = values[key]
            told = yaml.safe_load(said[1])
            assert told == (list(value) if isinstance(value, tuple) else value), key


@pytest.mark.parametrize("model", [*STAGES.values(), CurveSettings])
def test_help_shows_the_ten_options_that_people_use_and_where_the_others_are(
    model: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert set(model.usual) <= set(leaves(model)) and 8 <= len(model.usual) <= 12
    with pytest.raises(SystemExit):
        load(model, ["--help"], prog="run", examples="examples:\n  run\n")
    text = capsys.readouterr().out
    shown = set(re.findall(r"^  (?:-h, )?--(?:no-)?([\w.-]+)", text, re.MULTILINE))
    assert shown == {*model.usual, "help", "help-all", "config", "print-config"}
    assert f"--help-all shows all {len(leaves(model))}" in text and "examples:" in text


@pytest.mark.parametrize("model", OTHERS)
def test_help_shows_every_key_of_the_entries_without_a_file(
    model: type[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load(model, ["--help"], prog="run")
    text = capsys.readouterr().out
    assert not [key for key in leaves(model) if not re.search(rf"\b{key}\b", text, re.IGNORECASE)]


def test_defaults_of_the_typed_settings_are_those_of_a_bare_run() -> None:
    assert pretraining() == PretrainSettings()
    assert FinetuneSettings(pretrained="none").model is None  # then the default ModelConfig
    assert PretrainSettings().model == type(PretrainSettings().model)()


def test_the_data_set_chooses_its_configuration() -> None:
    words = ["--dataset", "ucf101"]
    found = load(FinetuneSettings, words, prog="")
    assert (found.dataset, found.epochs, found.test_clips) == ("ucf101", 40, 10)
    assert default_config("folder", "finetune") is None
    curve = load(CurveSettings, words, prog="")
    assert curve.seeds == (0, 1, 2)


def test_a_training_from_scratch_has_its_own_rate_and_length() -> None:
    words = "--max_steps 50 --optimizer.lr 0.01 --trunk_rate 0.1".split()
    curve = load(CurveSettings, words, prog="")
    plain = curve.scratch.applied(curve)
    assert (plain.pretrained, plain.trunk_rate, plain.max_steps) == ("none", 1.0, 50)
    assert plain.optimizer == curve.optimizer
    own = load(
        CurveSettings, [*words, "--scratch.lr", "0.003", "--scratch.max_steps", "90"], prog=""
    )
    scratch = own.scratch.applied(own)
    assert (scratch.optimizer.lr, scratch.max_steps) == (0.003, 90)
    assert (own.optimizer.lr, own.max_steps) == (0.01, 50)


def test_plain_words_and_lists_of_words_are_read() -> None:
    class Words(Settings):
        model: str = positional("d")
        videos: tuple[str, ...] = positional("d", min_length=1)
        sides: tuple[int, ...] | None = Field(default=None)
        runs: tuple[Path, ...] = Field(default=())
        deep: bool = Field(default=True)

    def read(*words: str) -> Words:
        return load(Words, words, prog="run")

    found = read("m", "a,b", "c", "--sides", "1,2", "--runs", "x,1", "y", "--no-deep")
    assert (found.model, found.videos, found.sides) == ("m", ("a,b", "c"), (1, 2))
    assert found.runs == (Path("x,1"), Path("y")) and not found.deep
    for sides in (["1", "2"], ["1,", "2"], ["[1, 2]"], ["1 2"]):
        assert read("m", "a", "--sides", *sides).sides == (1, 2)
    assert read("m", "a", "--sides", "null").sides is None
    assert read("m", "v", "--sides", "null").sides is None
    assert read("m", "v", "--sides", "[3]").sides == (3,)
    with pytest.raises(SettingsError, match="MODEL: missing: d\nVIDEOS: missing: d"):
        read()


def test_a_printed_configuration_reads_back_as_the_same_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        pretraining("--config", "paper", "--seed", "7", "--print-config")
    file = tmp_path / "printed.yaml"
    file.write_text(capsys.readouterr().out)
    assert pretraining("--config", str(file)) == pretraining("--config", "paper", "--seed", "7")


def test_a_mistake_is_named_with_the_place_where_it_was_made(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("optimizer: {lr: -1}\n")
    with pytest.raises(SettingsError) as caught:
        pretraining("--config", str(file), "--optimizer.kind", "adam", "--epochs", "many")
    lines = str(caught.value).splitlines()
    assert f"{file}: optimizer.lr: expected greater than 0, found -1" in lines
    assert (
        "--optimizer.kind: expected 'sgd' or 'adamw' (did you mean adamw?), found 'adam'" in lines
    )
    assert "--epochs: expected a valid number, found 'many'" in lines
    with pytest.raises(SettingsError, match=r"^compile: on and activation_checkpointing do not go"):
        pretraining("--compile", "on", "--activation_checkpointing")
    with pytest.raises(SettingsError, match="--split: expected a valid integer or 'all', found"):
        load(FinetuneSettings, ["--split", "x"], prog="")


@pytest.mark.parametrize(("stage", "name"), CONFIGS)
def test_a_committed_configuration_holds_only_what_it_changes(stage: str, name: str) -> None:
    model = STAGES[stage]
    values, defaults = read_yaml(name, stage), flatten(model())
    validate(model, values, origin=name)

    def check(part: dict[str, object], prefix: str) -> None:
        for key, value in part.items():
            if isinstance(value, dict):
                check(value, f"{prefix}{key}.")
            else:
                value = tuple(value) if isinstance(value, list) else value
                assert defaults.get(prefix + key, "") != value, f"{prefix}{key} is the default"

    check(values, "")
    assert (CONFIG_ROOT / stage / f"{name}.yaml").read_text().startswith("# Stage ")


def test_every_setting_is_described() -> None:
    models = [*STAGES.values(), *OTHERS]
    assert not [key for m in models for key, field in keys(m).items() if not field.description]


def test_settings_are_frozen_and_flatten_to_dotted_keys() -> None:
    class Inner(Settings):
        rate: float = Field(default=0.1)

    class Outer(Settings):
        inner: Inner = Field(default=Inner())

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
