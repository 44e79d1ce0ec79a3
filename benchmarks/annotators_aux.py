"""What `annotators.py` starts with the interpreter that has controlnet-aux.

Nothing of this pack is imported here. Where torchvision is missing, a stand-in takes its place:
of what is measured, only the normalisation of NormalBAE's pictures is really called.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from annotators_cases import CASES, Case, Detector
from annotators_worker import Side, reason

PACKAGE = "controlnet_aux"
PACKAGES = ("controlnet-aux", "torch", "torchvision", "timm", "numpy", "opencv-python-headless")


class Normalize:
    """torchvision's, for a tensor (N, C, H, W)."""

    def __init__(self, mean: list[float], std: list[float]) -> None:
        self.mean, self.std = mean, std

    def __call__(self, x: Any) -> Any:
        mean, std = (x.new_tensor(row)[:, None, None] for row in (self.mean, self.std))
        return (x - mean) / std


class Empty(type):
    """The type of classes whose attributes are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class StandIn(ModuleType):
    """A module in which every name is an empty class, or a module of the same kind."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "Normalize":
            return Normalize
        if name[0].islower():
            return importlib.import_module(f"{self.__name__}.{name}")
        return Empty(name, (), {"__init__": lambda self, *args, **kwargs: None})


class StandInFinder:
    """Finds every module below torchvision."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name.partition(".")[0] != "torchvision":
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


class Aux(Side):
    """controlnet-aux's detectors, one at a time."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.cases = {case.name: case for case in CASES}
        self.case: Case | None = None
        self.made: Any = None

    def about(self) -> dict[str, Any]:
        """Versions, and whether the package can be imported as it is."""
        if importlib.util.find_spec("torchvision") is None:
            sys.meta_path.append(StandInFinder())
        whole = ""
        try:
            importlib.import_module(PACKAGE)
        except Exception as error:
            whole = reason(error)
            parts()
        failed = {}
        for name in sorted({case.aux.module for case in CASES if case.aux}):
            try:
                importlib.import_module(f"{PACKAGE}.{name}")
            except Exception as error:
                failed[name] = reason(error)
        return {"versions": versions(), "package": whole or "imported", "failed": failed}

    def load(self, case: str) -> dict[str, Any]:
        """Makes the detector of a case, with the weights that lie in its folder."""
        self.case, self.made, self.repeats = self.cases[case], None, {}
        detector = self.detector
        module = importlib.import_module(f"{PACKAGE}.{detector.module}")
        kind = getattr(module, detector.name)
        if self.case.net:
            given = {"filename": "7_model.pth"} if detector.module == "teed" else {}
            self.made = kind.from_pretrained(str(self.folder / self.case.annotator), **given)
        else:
            self.made = kind()
        return {}

    @property
    def detector(self) -> Detector:
        assert self.case is not None
        assert self.case.aux is not None
        return self.case.aux

    def one(self, picture: Any) -> Any:
        """The hint of one picture; the second where there are several."""
        sizes = dict.fromkeys(self.detector.sizes, picture.shape[0])
        hint = self.made(picture, **sizes, **self.detector.call)
        return hint[1] if isinstance(hint, tuple) else hint

    def calls(self, by: str, size: int, batch: int) -> Callable[[], Any]:
        pictures = np.load(self.folder / f"pictures_{size}.npy")[:batch]
        return lambda: [self.one(picture) for picture in pictures]

    def hint(self, size: int) -> dict[str, Any]:
        """Puts the hint of the first picture into the folder."""
        (hint,) = self.calls("", size, 1)()
        np.save(self.folder / "hint_aux.npy", hint)
        return {}


def parts() -> None:
    """Lets the package's parts be imported one by one, each with what it needs itself."""
    for name in [name for name in sys.modules if name.partition(".")[0] == PACKAGE]:
        del sys.modules[name]
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        raise ModuleNotFoundError(f"{PACKAGE} isn't installed")
    package = ModuleType(PACKAGE)
    package.__path__ = list(found.submodule_search_locations or ())
    sys.modules[PACKAGE] = package


def versions() -> dict[str, str]:
    """Of the packages that matter."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "stand-in" if name == "torchvision" else "missing"
    return found


if __name__ == "__main__":
    Aux(Path(sys.argv[1])).serve()
