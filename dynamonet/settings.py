"""Typed settings: frozen models whose fields carry default, bounds and description.

The models are the only source of defaults; `dynamonet.command_line` fills them from a file and from
the command line.
"""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from dynamonet.errors import SettingsError


class Settings(BaseModel):
    """Base of every settings model: frozen, unknown keys refused, defaults checked too."""

    configs: ClassVar[str | None] = None  # folder below configs/ with files of such settings
    usual: ClassVar[tuple[str, ...]] = ()  # keys that --help shows; none = all
    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=()
    )


S = TypeVar("S", bound=Settings)


def validate(model: type[S], values: dict[str, Any], *, origin: str) -> S:
    """Builds `model` from plain values.

    Raises:
        SettingsError: with every offending key, what was expected and what was found, and for an
            unknown key the closest known one.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{key}: {text}" if key else text for key, text in problems(error, model)]
        raise SettingsError(f"settings from {origin}:\n  " + "\n  ".join(lines)) from None


def problems(error: ValidationError, model: type[BaseModel]) -> list[tuple[str, str]]:
    """Returns (dotted key, what is wrong) of each offending key; "" = the settings together."""
    known = keys(model)
    expected: dict[str, list[str]] = {}
    inputs: dict[str, str] = {}
    for item in error.errors():
        path = [str(part) for part in item["loc"]]
        if item["type"] == "extra_forbidden":
            key = ".".join(path)
            expected[key] = [f"unknown key{closest(key, known)}"]
            continue
        prefixes = [".".join(path[:end]) for end in range(len(path), 0, -1)]
        key = next((prefix for prefix in prefixes if prefix in known), "")
        text = item["msg"].removeprefix("Value error, ").split(", unable to")[0]
        if text.startswith("Input should be "):
            text = text.removeprefix("Input should be ")
            text = text if expected.get(key) else f"expected {text}"
        if item["type"] == "literal_error":
            text += _closest_value(item)
        if item["type"] == "missing" and key:
            expected[key] = [f"missing: {known[key].description}"]
            continue
        expected.setdefault(key, []).append(text)
        if key:
            inputs[key] = f", found {item['input']!r}"
    return [(key, " or ".join(texts) + inputs.get(key, "")) for key, texts in expected.items()]


def _closest_value(item: ErrorDetails) -> str:
    known = re.findall("'([^']*)'", item.get("ctx", {}).get("expected", ""))
    near = difflib.get_close_matches(str(item["input"]), known, n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def closest(key: str, known: Iterable[str]) -> str:
    """Returns a hint for an unknown key: the known one that resembles it most."""
    near = [option for option in known if option.rsplit(".", 1)[-1] == key]  # lr: optimizer.lr
    near = near or difflib.get_close_matches(key, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else "; --help lists all keys"


def whole_number(value: object) -> object:
    """Reads the digits that a command line gives; a Literal of numbers would refuse them."""
    return int(value) if isinstance(value, str) and value.isdigit() else value


def keys(model: type[BaseModel], prefix: str = "") -> dict[str, FieldInfo]:
    """Returns every dotted key of a settings model with its field, sections included."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        name = field.alias or name
        fields[prefix + name] = field
        inner = section(field)
        if inner is not None:
            fields |= keys(inner, f"{prefix}{name}.")
    return fields


def section(field: FieldInfo) -> type[BaseModel] | None:
    """Returns the settings model that a field holds, looking through `X | None`."""
    for option in members(field.annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            return option
    return None


def members(hint: Any) -> list[Any]:
    """Returns the members of a union, else the hint alone; annotations are looked through."""
    while typing.get_origin(hint) is typing.Annotated:
        hint = typing.get_args(hint)[0]
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return [option for member in typing.get_args(hint) for option in members(member)]
    return [hint]


def flatten(settings: Settings) -> dict[str, Any]:
    """Returns settings as one flat dict of dotted keys, in declaration order."""
    return dict(_walk(settings, ""))


def _walk(settings: Settings, prefix: str) -> Iterator[tuple[str, Any]]:
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if isinstance(value, Settings):
            yield from _walk(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


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
            lines.append(f"{indent}{name}: {in_yaml(plain)}{note}\n")
    return "".join(lines)


def in_yaml(value: Any) -> str:
    """Returns a plain value in one line of YAML."""
    value = list(value) if isinstance(value, tuple) else value
    value = str(value) if isinstance(value, Path) else value
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()
