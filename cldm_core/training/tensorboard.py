"""The record of a run for TensorBoard; the package is optional."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import CldmError
from ..pipeline import Picture

FOLDER = "tensorboard"


class TensorBoard:
    """Writes what `History.note` takes to folder/tensorboard, and pictures and sentences.

    from_step: the step that a run goes on from; what was logged after it is hidden. Raises
    CldmError where TensorBoard isn't installed.
    """

    def __init__(self, folder: Path | str, *, from_step: int | None = None) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise CldmError(
                "TensorBoard logs were asked for and TensorBoard is not installed: "
                "pip install tensorboard, or leave them out."
            ) from error
        purge = None if from_step is None else from_step + 1
        self._writer: Any = SummaryWriter(str(Path(folder) / FOLDER), purge_step=purge)

    def note(self, step: int, **numbers: Any) -> None:
        """Numbers by name, and mappings of numbers as name/key; texts and lists are left out."""
        for name, value in numbers.items():
            items = value.items() if isinstance(value, Mapping) else [("", value)]
            for key, one in items:
                if isinstance(one, str | list | tuple) or one is None:
                    continue
                label = f"{name}/{key}" if key else name
                self._writer.add_scalar(label, float(one), step)

    def picture(self, step: int, name: str, picture: Picture) -> None:
        """A picture (H, W, 3) uint8."""
        self._writer.add_image(name, picture, step, dataformats="HWC")

    def sentence(self, step: int, name: str, text: str) -> None:
        """A sentence, such as that of the sudden convergence."""
        self._writer.add_text(name, text, step)

    def close(self) -> None:
        """Writes what is left."""
        self._writer.close()

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
