"""Errors that a user can fix, and how an entry script shows them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any, NoReturn


class UserError(Exception):
    """Something the user can fix: says what was found, what was expected, what to do.

    Entry scripts print the message without a traceback and end with `exit_status`.

    Args:
        problem: What was found, or the whole message.
        remedy: What to do, where a caller may want it apart.
    """

    exit_status = 1

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(problem, remedy)
        self.problem, self.remedy = problem, remedy

    def __str__(self) -> str:
        end = "" if self.problem.endswith((".", "?")) else "."
        return f"{self.problem}{end} {self.remedy}" if self.remedy else self.problem


class SettingsError(UserError):
    """Settings that cannot be used; one line for each key."""

    exit_status = 2


class Stopped(KeyboardInterrupt):
    """A signal asked for the end; the exit status is 128 + its number, as shells expect."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_status = 128 + number


def reason(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class where it has no words."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def need(library: str, extra: str, purpose: str) -> Any:
    """Imports a library that only an extra brings.

    Args:
        purpose: What it is wanted for; begins the message.

    Raises:
        UserError: it is not installed; the message names the extra.
    """
    try:
        return importlib.import_module(library)
    except ImportError:
        raise UserError(f"{purpose}:\n  pip install 'dynamonet[{extra}]'") from None


def run_entry(main: Callable[[list[str]], object]) -> NoReturn:
    """Runs an entry script's main function on the command line and ends the process.

    Exit status 0 unless it raises. A `UserError`, also one that Ray wrapped on its way back from a
    worker, is printed without a traceback. A stop by a signal ends with 128 + its
    number, as shells expect: 130 after Ctrl-C.
    """
    status = 0
    try:
        main(sys.argv[1:])
    except KeyboardInterrupt as stop:
        print("\nStopped. Run the same command again to continue.", file=sys.stderr)
        status = getattr(stop, "exit_status", 130)
    except Exception as error:
        mistake = find_user_error(error)
        if mistake is None:
            raise
        print(f"error: {mistake}", file=sys.stderr)
        status = mistake.exit_status
    sys.exit(status)


def find_user_error(error: BaseException | None) -> UserError | None:
    """Returns the `UserError` in a chain of causes, looking inside Ray's wrappers."""
    seen: set[int] = set()
    queue = [error]
    while queue:
        current = queue.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        inner = getattr(current, "cause", None)  # what Ray wraps into an error of the same class
        if isinstance(current, UserError):
            return inner if isinstance(inner, UserError) else current
        queue += [current.__cause__, current.__context__, inner]
        failures = getattr(current, "worker_failures", None)
        if isinstance(failures, dict):
            queue += list(failures.values())
    return None
