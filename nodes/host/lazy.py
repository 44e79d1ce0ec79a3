"""Controls that are computed only when the UNet asks for them, or while it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from .residuals import HostResiduals, merged

COMPILED = "torch.compile"
"""The host's name for the wrapper that puts a compiled UNet in the place of the UNet."""
SKIPPERS = ("easycache",)
"""What in the transformer options says that the UNet may be left out at a step."""


def may_be_skipped(options: dict[str, Any]) -> bool:
    """Whether another node may yet leave the UNet out at this step."""
    return any(name in options for name in SKIPPERS)


def has_compiled_parts(unet: torch.nn.Module) -> bool:
    """Whether a UNet, or a part of it, was given to torch.compile."""
    return any(
        hasattr(part, "_orig_mod") or getattr(part, "_compiled_call_impl", None) is not None
        for part in unet.modules()
    )


def will_be_compiled(options: dict[str, Any]) -> bool:
    """Whether the host's own node has the UNet compiled, as the transformer options say."""
    return COMPILED in options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {})


class LazyResiduals(Mapping[str, list[Tensor | None]]):
    """Residuals in the host's form, computed at the first look."""

    def __init__(self, compute: Callable[[], HostResiduals | None]) -> None:
        self._compute = compute

    @cached_property
    def _found(self) -> HostResiduals:
        # Whoever reads it looks into all three, as into a control that the host computed.
        return self._compute() or {"input": [], "middle": [], "output": []}

    def __getitem__(self, slot: str) -> list[Tensor | None]:
        return self._found[slot]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def merged_late(control: Any, other: Any) -> Any:
    """The sum of two controls, of those that wait for the UNet only when it asks."""
    if isinstance(control, LazyResiduals) or isinstance(other, LazyResiduals):
        return LazyResiduals(lambda: merged(control, other))
    return merged(control, other)


class StreamedResiduals(Mapping[str, list[Tensor | None]]):
    """Residuals that another stream of the GPU computes; work that takes one waits for it there.

    The UNet asks for those of its encoder first, and a ControlNet has none.
    """

    def __init__(self, found: HostResiduals, stream: Any) -> None:
        self._found, self._done = found, stream.record_event()
        self._device = stream.device

    def __getitem__(self, slot: str) -> list[Tensor | None]:
        items = self._found[slot]
        if items and self._done is not None:
            torch.cuda.current_stream(self._device).wait_event(self._done)
            self._done = None
        return items

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
