"""In the place of torchvision, which hosts and transformers import at start: any name of it.

Nothing of it does anything; what the tests run calls none of it.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__version__ = "0"


class Name(type):
    """A class of any name, with any name in it."""

    def __getattr__(cls, name: str) -> Any:
        return nothing(name)


class Part(ModuleType):
    """A module with any name in it."""

    def __getattr__(self, name: str) -> Any:
        return nothing(name)


class Finder:
    """Finds every module below this one."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        below = name.startswith(f"{__name__}.")
        return ModuleSpec(name, self, is_package=True) if below else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return Part(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def nothing(name: str) -> Any:
    """A class of that name; Python's own names are missing, as it expects."""
    if name.startswith("__"):
        raise AttributeError(name)
    return Name(name, (), {})


if __name__ == "torchvision":
    sys.meta_path.append(Finder())
    sys.modules[__name__].__class__ = Part
