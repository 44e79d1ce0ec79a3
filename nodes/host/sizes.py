"""Residuals that follow a UNet whose blocks change size on the way (Deep Shrink and its kind).

The host drops a residual of another size than its block, with a line in the console. The size is
known only when the UNet gets there, so its own patches of input blocks tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ...cldm_core import ShapeError
from ...cldm_core.residuals import resampled

BEFORE, AFTER = "input_block_patch", "input_block_patch_after_skip"
"""The host's patches on a block's output: what the decoder sees, and what the next block reads."""
FOLLOWED = "cldm_followed"

Size = tuple[int, int]


@dataclass
class Followed:
    """What the patches read while a UNet runs.

    call: where the host puts the whole chain's control; sizes: of the blocks without such patches.
    """

    call: dict[str, Any]
    sizes: tuple[Size, ...]

    @property
    def control(self) -> Mapping[str, list[Tensor | None]]:
        return self.call.get("control") or {}

    def before(self, h: Tensor, extra: dict[str, Any]) -> Tensor:
        """What the decoder sees of a block meets that block's residual."""
        _fit(self.control, "output", extra["block"][1], h)
        return h

    def after(self, h: Tensor, extra: dict[str, Any]) -> Tensor:
        """What the next block reads: it adds its residual to what it makes of that."""
        index, sizes, size = extra["block"][1], self.sizes, (h.shape[-2], h.shape[-1])
        if index + 2 == len(sizes):
            _fit(self.control, "middle", -1, h, size)
            self.call = {}  # the encoder has ended, and this is in the call's own options
        else:
            if sizes[index + 1] != sizes[index]:
                size = (-(-size[0] // 2), -(-size[1] // 2))
            _fit(self.control, "input", -1, h, size, checked=False)
        return h


def follow_blocks(options: dict[str, Any], call: dict[str, Any], sizes: tuple[Size, ...]) -> None:
    """Has the residuals of this call resampled to the blocks that they meet.

    options: the call's transformer options, which get two patches; call, sizes: as in `Followed`.
    Nothing is done where no patch could change a size.
    """
    patches = options.get("patches", {})
    followed = options.get(FOLLOWED)
    if isinstance(followed, Followed):  # of another control, another door, or the tile before
        followed.call, followed.sizes = call, sizes
    elif BEFORE in patches or AFTER in patches:
        options[FOLLOWED] = followed = Followed(call, sizes)
        options["patches"] = {
            **patches,
            BEFORE: [*patches.get(BEFORE, []), followed.before],
            AFTER: [*patches.get(AFTER, []), followed.after],
        }


def _fit(
    control: Mapping[str, list[Tensor | None]],
    slot: str,
    index: int,
    h: Tensor,
    size: Size | None = None,
    *,
    checked: bool = True,
) -> None:
    """Puts a residual of the size of its block in the place of one of another."""
    items = control.get(slot) or []
    item = items[index] if -len(items) <= index < len(items) else None
    if item is None or item.shape[2:] == (1, 1):
        return
    if checked and (item.shape[1] != h.shape[1] or item.shape[0] not in (1, h.shape[0])):
        raise ShapeError(
            f"A residual of shape {tuple(item.shape)} meets a block of shape {tuple(h.shape)}: "
            "some node changes the UNet in a way that no ControlNet can follow. Leave that node "
            "out, or end the control before it begins."
        )
    items[index] = resampled(item, size or (h.shape[-2], h.shape[-1]))
