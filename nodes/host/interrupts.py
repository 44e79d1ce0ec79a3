"""An interrupt of the graph that is put off until a run is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn, TypeVar

import comfy.model_management

from ...cldm_core.training.made_hints import maker_key
from .bars import progress_bar

T = TypeVar("T")


class Interrupts:
    """Whether the graph was interrupted.

    The host raises an interrupt once, and then forgets it, wherever it looks: in progress bars, and
    newer versions in every layer. What runs `through` this isn't ended by it; called, this says
    whether there was one.
    """

    def __init__(self) -> None:
        self._seen = False

    def __call__(self) -> bool:
        return self._seen or bool(comfy.model_management.processing_interrupted())

    def through(self, call: Callable[..., T], *args: Any) -> T:
        """What the call gives; it is called again where an interrupt ended it."""
        while True:
            try:
                return call(*args)
            except comfy.model_management.InterruptProcessingException:
                self._seen = True

    def check(self) -> None:
        """Ends the graph where it was interrupted."""
        if self():
            self.end()

    def end(self) -> NoReturn:
        """Ends the graph as the host does."""
        comfy.model_management.interrupt_current_processing(False)
        raise comfy.model_management.InterruptProcessingException()


@dataclass(frozen=True)
class Uninterrupted:
    """A maker of hints that runs through interrupts; `key` names it in caches."""

    maker: Callable[[Any], Any]
    interrupts: Interrupts

    @property
    def key(self) -> str | None:
        return maker_key(self.maker)

    def __call__(self, picture: Any) -> Any:
        return self.interrupts.through(self.maker, picture)


def checked_progress(interrupts: Interrupts) -> Callable[[int, int], None]:
    """A progress bar, told as (done, total), that an interrupt of the graph ends."""
    move = progress_bar()

    def told(done: int, total: int) -> None:
        interrupts.check()
        move(done, total)

    return told
