"""All commands under one name: `dynamonet COMMAND ...`, or `python -m dynamonet COMMAND ...`"""

from __future__ import annotations

from pkgutil import resolve_name
from typing import NoReturn

from dynamonet import __version__
from dynamonet.commands import COMMANDS
from dynamonet.errors import SettingsError, run_entry
from dynamonet.settings import closest


def main() -> NoReturn:
    """Runs the command that the first word names, with the words after it."""
    run_entry(_dispatch)


def _dispatch(argv: list[str]) -> None:
    name, words = (argv or ["--help"])[0], argv[1:]
    if name == "--version":
        print(f"dynamonet {__version__}")
    elif name in ("-h", "--help"):
        print("usage: dynamonet COMMAND [--key value ...]\n")
        for each, (_, about) in COMMANDS.items():
            print(f"  {each:12}{about}")
        print("\ndynamonet COMMAND --help shows its settings.")
    elif name in COMMANDS:
        # by name: the library imports no stage
        resolve_name(f"{COMMANDS[name][0]}:main")(words)
    else:
        raise SettingsError(f"{name}: no such command{closest(name, COMMANDS)}")


if __name__ == "__main__":
    main()
