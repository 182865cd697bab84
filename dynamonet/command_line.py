"""The command line of every entry, made from its settings: typed defaults < YAML file < flags.

Each field is a flag (`--optimizer.lr 0.05`), or a word of its own where it is marked as positional.
argparse reads the words and pydantic the values, so that all mistakes are named at once.
"""

from __future__ import annotations

import argparse
import re
import sys
import typing
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml
from pydantic import Field, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from dynamonet.commands import CONFIG_ROOT, fill
from dynamonet.errors import SettingsError
from dynamonet.settings import (
    S,
    closest,
    flatten,
    in_yaml,
    keys,
    members,
    problems,
    section,
    to_yaml,
)


def positional(description: str, **options: Any) -> Any:
    """Declares a field that is given as a plain word, not as a flag."""
    return Field(description=description, json_schema_extra={"positional": True}, **options)


def load(
    model: type[S],
    argv: Sequence[str],
    *,
    prog: str,
    description: str = "",
    examples: str = "",
) -> S:
    """Builds an entry's settings from the command line; prints and exits for --help.

    Args:
        description: Of the entry; else the model's docstring.
        examples: Shown at the end of `--help`, `{name}` of a command as it is typed.

    Raises:
        SettingsError: a key is unknown, a value is out of range, or the file is no mapping. The
            message has one line for each key, with where it was given.
    """
    fields = {key: field for key, field in keys(model).items() if section(field) is None}
    about, examples, stage = description or str(model.__doc__), fill(examples), model.configs
    parser = _parser(fields, prog, about, examples, stage)
    options, extra = parser.parse_known_args(_fold_switches(argv, fields))
    _refuse_unknown(extra, fields)
    words = vars(options)
    wants_help, wants_all = words.pop("help", False), words.pop("help_all", False)
    prints = words.pop("print_config", False)
    name = words.pop("config", None)
    given = {key: _plain(value, fields[key]) for key, value in words.items()}
    if name is None and stage is not None:
        name = default_config(given.get("dataset"), stage)
    in_file = dotted(read_yaml(name, stage)) if name and stage else {}
    if wants_help or wants_all:
        effective = {key: field.get_default() for key, field in fields.items()} | in_file | given
        with suppress(SettingsError):  # a mistake does not keep the help from the user
            effective |= flatten(_build(model, in_file, given, name))
        shown = fields if wants_all or not model.usual else {k: fields[k] for k in model.usual}
        if len(shown) < len(fields):
            examples = f"--help-all shows all {len(fields)} settings, by group.\n\n{examples}"
        _parser(shown, prog, about, examples, stage, effective).print_help()
        sys.exit(0)
    settings = _build(model, in_file, given, name)
    if prints:
        sys.stdout.write(to_yaml(settings))
        sys.exit(0)
    return settings


def read_yaml(name_or_file: str, stage: str) -> dict[str, Any]:
    """Reads a settings file given by path or by its name in `configs/<stage>/`."""
    path = Path(name_or_file)
    if not path.suffix and not path.is_file():
        path = CONFIG_ROOT / stage / f"{name_or_file}.yaml"
    if not path.is_file():
        raise SettingsError(
            f"--config {name_or_file}: no such file, and configs/{stage}/ has only: "
            f"{', '.join(config_names(stage)) or 'nothing'}"
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


def default_config(dataset: str | None, stage: str) -> str | None:
    """Returns the file taken when --config is absent: the data set's own, if it has one."""
    return dataset if dataset in config_names(stage) else None


def config_names(stage: str) -> list[str]:
    """Returns the names of the committed configurations of a stage."""
    return sorted(path.stem for path in (CONFIG_ROOT / stage).glob("*.yaml"))


def _build(model: type[S], in_file: dict[str, Any], given: dict[str, Any], name: str | None) -> S:
    """Validates what file and command line say together; a mistake is named with its place."""
    try:
        return model.model_validate(nest(in_file | given))
    except ValidationError as error:
        lines = []
        fields = keys(model)
        for key, text in problems(error, model):
            if not key:
                lines.append(text)
            elif key in in_file and key not in given:
                lines.append(f"{name}: {key}: {text}")
            else:
                word = key in fields and _is_positional(fields[key])
                lines.append(f"{key.upper() if word else f'--{key}'}: {text}")
        raise SettingsError("\n".join(lines)) from None


def dotted(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested values by their dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= dotted(value, f"{name}.") if isinstance(value, dict) else {name: value}
    return flat


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Returns values by dotted keys as nested ones."""
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *path, leaf = key.split(".")
        inner = nested
        for part in path:
            if not isinstance(inner.get(part), dict):  # a section that was null
                inner[part] = {}
            inner = inner[part]
        inner[leaf] = value
    return nested


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise SettingsError(f"{message}; --help lists all keys")


def _parser(
    fields: Mapping[str, FieldInfo],
    prog: str,
    description: str,
    examples: str,
    stage: str | None,
    shown: Mapping[str, Any] | None = None,
) -> _Parser:
    """Makes the parser; `shown` are the values that --help tells."""
    parser = _Parser(
        prog=prog,
        description=description,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        add_help=False,
        allow_abbrev=False,
    )
    words = [key.upper() for key, field in fields.items() if _is_positional(field)]
    parser.usage = " ".join(["%(prog)s", *words, "[--key value ...]"])
    parser.add_argument("-h", "--help", action="store_true", help="show this help and exit")
    parser.add_argument("--help-all", action="store_true", help="show all settings and exit")
    if stage is not None:
        about = f"YAML file, or the name of one in configs/{stage}/: "
        about += ", ".join(config_names(stage))
        parser.add_argument("--config", metavar="NAME|FILE", help=about)
    about = "print the complete settings as YAML and exit"
    parser.add_argument("--print-config", action="store_true", help=about)
    groups: dict[str, Any] = {"": parser}
    for key, field in fields.items():
        head = key.rpartition(".")[0]
        if head not in groups:
            groups[head] = parser.add_argument_group(head)
        value = (shown or {}).get(key)
        default = "" if value is PydanticUndefined else f" (default: {in_yaml(value)})"
        options: dict[str, Any] = {"help": f"{field.description}{default}".replace("%", "%%")}
        several = _is_list(field)
        if _is_positional(field):
            options |= {"nargs": "*" if several else "?", "metavar": key.upper()}
            groups[head].add_argument(key, **options)
        elif field.annotation is bool:
            options["action"] = argparse.BooleanOptionalAction
            groups[head].add_argument(f"--{key}", **options)
        else:
            options |= {"nargs": "+" if several else None, "metavar": _metavar(field)}
            groups[head].add_argument(f"--{key}", **options)
    return parser


def _is_positional(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    return isinstance(extra, dict) and bool(extra.get("positional"))


def _is_list(field: FieldInfo) -> bool:
    return typing.get_origin(_bare(field)) is tuple


def _holds_names(field: FieldInfo) -> bool:
    """Tells whether a list is one of names, in which a comma is a letter like any other."""
    return typing.get_args(_bare(field))[0] is Path or _is_positional(field)


def _bare(field: FieldInfo) -> Any:
    """Returns a field's type less None."""
    return next(option for option in members(field.annotation) if option is not type(None))


def _metavar(field: FieldInfo) -> str:
    names = []
    for option in members(field.annotation):
        if typing.get_origin(option) is Literal:
            names += [str(value) for value in typing.get_args(option)]
        elif typing.get_origin(option) is tuple:
            names.append("A")
        elif option is not type(None):
            names.append({int: "N", float: "X"}.get(option, "TEXT"))
    return "|".join(names)


def _plain(value: Any, field: FieldInfo) -> Any:
    """Turns words of the command line into what the field's type reads."""
    nullable = type(None) in members(field.annotation)
    if nullable and value in ("null", ["null"]):
        return None
    if not _is_list(field) or _holds_names(field):
        return value
    return [part for word in value for part in re.split(r"[,\s]+", word.strip("[]()")) if part]


def _fold_switches(argv: Sequence[str], fields: Mapping[str, FieldInfo]) -> list[str]:
    """Turns `--key true` and `--key=false` into `--key` and `--no-key`, as switches are parsed."""
    switches = {f"--{key}" for key, field in fields.items() if field.annotation is bool}
    words: list[str] = []
    for word in argv:
        flag, _, value = word.partition("=")
        if flag in switches and value:
            words.append(flag)
            word = value
        before = words[-1] if words else ""
        if before in switches and word.lower() in ("true", "false"):
            if word.lower() == "false":
                words[-1] = f"--no-{before.removeprefix('--')}"
        else:
            words.append(word)
    return words


def _refuse_unknown(extra: Iterable[str], fields: Mapping[str, FieldInfo]) -> None:
    """Raises SettingsError for words that no field takes."""
    flags = [word.split("=", 1)[0] for word in extra if word.startswith("-")]
    lines = [f"{flag}: unknown option{closest(flag.strip('-'), fields)}" for flag in flags]
    if not lines and extra:
        lines = [f"{' '.join(extra)}: unexpected; --help lists all keys"]
    if lines:
        raise SettingsError("\n".join(lines))
