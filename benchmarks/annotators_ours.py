"""What `annotators.py` starts with its own Python: this pack's annotators, and OpenCV's calls."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# Ahead of this folder, where a script has the package's name.
sys.path.insert(0, str(ROOT))

import numpy as np  # noqa: E402
from annotators_cases import CASES, OPENCV, Case  # noqa: E402
from annotators_worker import Side, sample  # noqa: E402

from annotators import ANNOTATORS, Annotator, keeper, weights  # noqa: E402

FRACTION = 0.3
"""The part of a picture that is masked where an annotator needs a mask."""


class Counting(keeper.Kept):
    """The keeper that a process has by itself, which counts how often something is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.loads = 0
        self.net: Any = None

    def thing(self, key: Hashable, build: Callable[[], Any]) -> Any:
        def counted() -> Any:
            self.loads += 1
            return build()

        self.net = super().thing(key, counted)
        return self.net


class Ours(Side):
    """This pack's annotators, one at a time."""

    def __init__(self, folder: Path, device: str) -> None:
        super().__init__()
        self.folder, self.device = folder, device
        self.starts_slowly = device == "cuda"
        self.cases = {case.name: case for case in CASES}
        self.case: Case | None = None
        self.kept = Counting()
        self.given = ExitStack()

    def about(self) -> dict[str, Any]:
        """What the figures depend on; nothing that names the machine."""
        import cv2
        import load
        import torch

        found = {key: value for key, value in load.machine().items() if key != "page_cache"}
        found |= {"opencv": cv2.__version__, "numpy": np.__version__}
        found |= {"threads": torch.get_num_threads(), "device": self.device}
        if self.device == "cuda":
            found["device"] = torch.cuda.get_device_name()
        return found

    def draw(self, size: int, count: int) -> dict[str, Any]:
        """Puts pictures of this size into the folder."""
        np.save(self.folder / f"pictures_{size}.npy", [drawn(size, one) for one in range(count)])
        return {}

    def load(self, case: str) -> dict[str, Any]:
        """Makes the weights of a case, and lets go what was loaded before."""
        if self.case:
            shutil.rmtree(self.folder / self.case.annotator, ignore_errors=True)
        self.case, self.repeats = self.cases[case], {}
        self.given.close()
        self.kept = Counting()
        keeper.use(self.kept)
        if self.case.net:
            import annotators_nets
            import torch

            paths = annotators_nets.write(
                self.record, self.case.settings, self.folder / self.case.annotator
            )
            for one, path in paths.items():
                self.given.enter_context(weights.given(one, path))
            if self.device == "cuda":
                torch.cuda.empty_cache()
        return {}

    @property
    def record(self) -> Annotator:
        assert self.case is not None
        return ANNOTATORS[self.case.annotator]

    def calls(self, by: str, size: int, batch: int) -> Callable[[], Any]:
        assert self.case is not None
        pictures = np.load(self.folder / f"pictures_{size}.npy")[:batch]
        if by == OPENCV:
            call = OPENCV_CALLS[self.case.name]
            return lambda: [call(picture) for picture in pictures]
        told: dict[str, Any] = {**self.case.settings}
        if self.record.weights:
            told |= {"device": self.device, "resolution": size}
        if self.record.needs_mask:
            told["mask"] = np.zeros((size, size), np.float32)
            told["mask"][: int(size * FRACTION)] = 1
        given = pictures[0] if batch == 1 else pictures
        return lambda: self.record(given, **told)

    def first(self, size: int) -> dict[str, Any]:
        """Seconds of the first and of the second run, and what was loaded for each."""
        call = self.calls("", size, 1)
        found: dict[str, Any] = {}
        for name in ("first", "second"):
            before, started = self.kept.loads, time.perf_counter()
            call()
            found[name] = round(time.perf_counter() - started, 4)
            found[f"loads_{name}"] = self.kept.loads - before
        return found

    def inside(self, size: int, batch: int) -> dict[str, float]:
        """Seconds of one call, and those of them that were spent in the network."""
        call = self.calls("", size, batch)
        with clocked(self.kept.net, self.device) as spent:
            whole = sample(call, 1)["seconds"]
        return {"seconds": whole, "net": sum(spent)}

    def hint(self, size: int) -> dict[str, Any]:
        """How the other side's hint of the first picture differs from this one's."""
        hint = self.calls("", size, 1)()
        other = np.load(self.folder / "hint_aux.npy")
        if hint.shape != other.shape:
            return {"shapes": [hint.shape, other.shape]}
        away = np.abs(hint.astype(int) - other)
        return {"most": int(away.max()), "pixels": round(float((away > 0).any(-1).mean()), 5)}


@contextmanager
def clocked(net: Any, device: str) -> Iterator[list[float]]:
    """Collects the seconds of each of the network's runs inside."""
    import torch

    spent: list[float] = []

    def now() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    starts: list[float] = []
    hooks = [
        net.register_forward_pre_hook(lambda *_: starts.append(now())),
        net.register_forward_hook(lambda *_: spent.append(now() - starts.pop())),
    ]
    try:
        yield spent
    finally:
        for hook in hooks:
            hook.remove()


def drawn(size: int, seed: int) -> Any:
    """(size, size, 3) uint8: shapes before a soft background, with a little noise, as in photos."""
    random = np.random.default_rng(seed)
    small = random.uniform(30, 220, (6, 6, 3)).astype(np.float32)
    picture = cv().resize(small, (size, size), interpolation=cv().INTER_CUBIC)
    for _ in range(60):
        colour = random.uniform(0, 255, 3).tolist()
        middle, axes = random.integers(0, size, 2).tolist(), random.integers(4, size // 6, 2)
        angle = float(random.uniform(0, 360))
        cv().ellipse(picture, middle, axes.tolist(), angle, 0, 360, colour, -1, cv().LINE_AA)
        ends = random.integers(0, size, (2, 2)).tolist()
        cv().line(picture, *ends, colour, 2, cv().LINE_AA)
    picture = cv().GaussianBlur(picture, (0, 0), 1.0) + random.normal(0, 3, picture.shape)
    return picture.clip(0, 255).astype(np.uint8)


# OpenCV's own calls, with the defaults of the annotators of the same name.


def opencv_canny(picture: Any) -> Any:
    return _rgb(cv().Canny(picture, 100, 200))


def opencv_binary(picture: Any) -> Any:
    return _rgb(cv().threshold(_grey(picture), 100, 255, cv().THRESH_BINARY)[1])


def opencv_invert(picture: Any) -> Any:
    return cv().bitwise_not(picture)


def opencv_grey(picture: Any) -> Any:
    return _rgb(_grey(picture))


def opencv_blur(picture: Any) -> Any:
    return cv().GaussianBlur(picture, (0, 0), 9.0)


def opencv_tile(picture: Any) -> Any:
    side = picture.shape[0]
    small = cv().resize(picture, (side // 8, side // 8), interpolation=cv().INTER_AREA)
    for _ in range(3):
        small = cv().pyrUp(small)
    return small


def opencv_color_grid(picture: Any) -> Any:
    side = picture.shape[0]
    small = cv().resize(picture, (side // 64, side // 64), interpolation=cv().INTER_CUBIC)
    return cv().resize(small, (side, side), interpolation=cv().INTER_NEAREST)


def opencv_line_segments(picture: Any) -> Any:
    """Found and drawn; short ones too, and in colours."""
    finder = cv().createLineSegmentDetector()
    return finder.drawSegments(np.zeros_like(picture), finder.detect(_grey(picture))[0])


def cv() -> Any:
    import cv2

    return cv2


def _grey(picture: Any) -> Any:
    return cv().cvtColor(picture, cv().COLOR_RGB2GRAY)


def _rgb(grey: Any) -> Any:
    return cv().cvtColor(grey, cv().COLOR_GRAY2RGB)


OPENCV_CALLS: dict[str, Callable[[Any], Any]] = {
    "canny": opencv_canny,
    "binary": opencv_binary,
    "invert": opencv_invert,
    "grey": opencv_grey,
    "blur": opencv_blur,
    "tile": opencv_tile,
    "color_grid": opencv_color_grid,
    "line_segments": opencv_line_segments,
}


if __name__ == "__main__":
    Ours(Path(sys.argv[1]), sys.argv[2]).serve()
