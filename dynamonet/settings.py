"""Typed settings: defaults < YAML file < environment and command line, all errors at once.

A stage declares a frozen pydantic model; `load` fills it from `--config FILE` and dotted overrides
(`--optimizer.lr 0.05`), and refuses unknown keys with the closest known key named.
"""

from __future__ import annotations

import argparse
import difflib
import sys
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, CliSettingsSource, SettingsConfigDict

from dynamonet.errors import SettingsError

CONFIG_ROOT = Path(__file__).resolve().parent.parent / "configs"


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, defaults checked too."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=()
    )


S = TypeVar("S", bound=Settings)


def load(
    model: type[S], argv: Sequence[str], *, stage: str, prog: str, description: str, examples: str
) -> S:
    """Builds a stage's settings from the command line; prints and exits for --help/--print-config.

    Args:
        stage: Folder below `configs/` in which `--config NAME` is looked up.
        examples: Shown at the end of `--help`.

    Raises:
        SettingsError: a key is unknown, a value is out of range, or the file is no mapping. The
            message has one line for each key.
    """
    parser = _Parser(
        prog=prog,
        usage="%(prog)s [--config NAME|FILE] [--key value ...]",
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config",
        metavar="NAME|FILE",
        help=f"YAML file, or the name of one in configs/{stage}/: {', '.join(names(stage))}",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print the complete settings as YAML and exit"
    )
    flags = {f"--{key}" for key in keys(model)}
    unknown = _unknown_flags(argv, flags | {"--config", "--print-config", "--help", "-h"})
    if unknown:
        raise SettingsError("\n".join(unknown))
    words = _plain_flags(argv, flags)
    source = CliSettingsSource(_cli_model(model), root_parser=parser, cli_parse_args=words)
    own = parser.parse_args(words)
    overrides = _drop_unset(source())
    file_name = own.config or default_config(stage, overrides)
    values = _merge(read_yaml(file_name, stage) if file_name else {}, overrides)
    settings = validate(model, values, origin=file_name or "the command line")
    if own.print_config:
        sys.stdout.write(to_yaml(settings))
        sys.exit(0)
    return settings


def whole_number(value: object) -> object:
    """Reads the digits that a command line gives; a Literal of numbers would refuse them."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def validate(model: type[S], values: dict[str, Any], *, origin: str) -> S:
    """Builds `model` from plain values.

    Raises:
        SettingsError: with every offending key, its value, what was expected, and for an unknown
            key the closest known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        known = list(keys(model))
        lines = []
        for item in error.errors():
            key = ".".join(str(part) for part in item["loc"])
            if item["type"] == "extra_forbidden":
                lines.append(f"{key}: unknown key{_closest(key, known)}")
            else:
                message = item["msg"].removeprefix("Value error, ")
                lines.append(f"{key or 'settings'}: {message} (found {item['input']!r})")
        raise SettingsError(f"settings from {origin}:\n  " + "\n  ".join(lines)) from None


def read_yaml(name_or_file: str, stage: str) -> dict[str, Any]:
    """Reads a settings file given by path or by its name in `configs/<stage>/`."""
    path = Path(name_or_file)
    if not path.suffix and not path.is_file():
        path = CONFIG_ROOT / stage / f"{name_or_file}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"--config {name_or_file}: no such file, and configs/{stage}/ has only: "
            f"{', '.join(names(stage)) or 'nothing'}"
        )
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not a YAML file: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: expected `key: value` lines, found {type(values).__name__}")
    return values


def default_config(stage: str, overrides: dict[str, Any]) -> str | None:
    """Returns the file taken when --config is absent: the data set's own, else `default`."""
    for name in (overrides.get("dataset"), "default"):
        if name in names(stage):
            return str(name)
    return None


def names(stage: str) -> list[str]:
    """Returns the names of the committed configurations of a stage."""
    return sorted(path.stem for path in (CONFIG_ROOT / stage).glob("*.yaml"))


def keys(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yields every dotted key of a settings model, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        section = _section(field)
        if section is not None:
            yield from keys(section, f"{prefix}{name}.")


def to_yaml(settings: Settings, indent: str = "") -> str:
    """Renders settings as YAML, each key followed by its description."""
    lines = []
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        note = f"  # {field.description}" if field.description else ""
        if isinstance(value, Settings):
            lines.append(f"{indent}{name}:{note}\n{to_yaml(value, indent + '  ')}")
        else:
            plain = settings.model_dump(mode="json", include={name})[name]
            text = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
            lines.append(f"{indent}{name}: {text.removesuffix('...' + chr(10)).strip()}{note}\n")
    return "".join(lines)


def flatten(settings: Settings, prefix: str = "") -> dict[str, Any]:
    """Returns settings as one flat dict of dotted keys, in declaration order."""
    flat: dict[str, Any] = {}
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _section(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the settings model that a field holds, looking through `X | None`."""
    hint = field.annotation
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    for option in options:
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def _cli_model(model: type[Settings]) -> type[BaseSettings]:
    """Makes the command-line twin of a settings model."""
    config = SettingsConfigDict(
        cli_implicit_flags=True,
        cli_avoid_json=True,
        cli_hide_none_type=True,
        cli_parse_none_str="null",
        extra="forbid",
    )
    return type(model.__name__, (model, BaseSettings), {"model_config": config})


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists all keys")


def _plain_flags(argv: Sequence[str], flags: set[str]) -> list[str]:
    """Turns `--key true` and `--key false` into `--key` and `--no-key`, as switches are parsed."""
    words: list[str] = []
    for word in argv:
        before = words[-1] if words else ""
        if word.lower() == "true" and before in flags:
            continue
        if word.lower() == "false" and before in flags:
            words[-1] = f"--no-{before.removeprefix('--')}"
        else:
            words.append(word)
    return words


def _unknown_flags(argv: Sequence[str], known: set[str]) -> list[str]:
    lines = []
    for word in argv:
        flag = word.split("=", 1)[0]
        positive = "--" + flag.removeprefix("--no-")
        if flag.startswith("--") and flag not in known and positive not in known:
            candidates = [option.removeprefix("--") for option in known]
            lines.append(f"{flag}: unknown option{_closest(flag.removeprefix('--'), candidates)}")
    return lines


def _closest(key: str, known: Sequence[str]) -> str:
    near = [option for option in known if option.rsplit(".", 1)[-1] == key]  # lr: optimizer.lr
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; --help lists all keys"


def _drop_unset(values: dict[str, Any]) -> dict[str, Any]:
    """Drops the empty sections that the command-line source leaves behind."""
    kept = {key: _drop_unset(v) if isinstance(v, dict) else v for key, v in values.items()}
    return {key: value for key, value in kept.items() if value != {}}


def _merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[key] = _merge(old, value) if both else value  # type: ignore[arg-type]
    return merged
