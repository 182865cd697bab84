"""Names that a package offers without importing what stands behind them."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from typing import Any


def offer(package: str, **modules: str) -> None:
    """Makes `from package import name` load `name` from its module, on first use.

    A name wins over a submodule of the same name, in any order of imports: `data_prep.shard` is
    the function, although the file `data_prep/shard.py` is run and imported as well.

    Args:
        package: `__name__` of the package.
        modules: For each name offered, the module that defines it.
    """

    def getter(name: str, module: str) -> Callable[[object], Any]:
        return lambda _: getattr(importlib.import_module(module), name)

    def keep(_: object, submodule: types.ModuleType) -> None:
        """Takes no notice of the import system, which sets each submodule as an attribute."""

    names = {name: property(getter(name, module), keep) for name, module in modules.items()}
    here = sys.modules[package]
    here.__class__ = type("Package", (types.ModuleType,), names)
