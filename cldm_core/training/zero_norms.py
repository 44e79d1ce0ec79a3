"""How far the zero convolutions of a net have come from zero."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

from torch import Tensor, nn

from ..lllite import ControlLLLite

HINT, MIDDLE = "hint", "middle"


def zero_norms(net: nn.Module) -> dict[str, float]:
    """The L2 norm of each layer that starts at zero, weight and bias together, by its label.

    Of ControlNets and Control-LoRAs: `hint` (the last convolution of the hint encoder), z0, z1, ..
    and `middle`, labels as in records of control. Of a ControlNet-LLLite: the layers `up`, those of
    one block together, by the block, such as input_blocks.4. {} for nets that have none.
    """
    squares: dict[str, float] = defaultdict(float)
    for label, value in _zeros(net):
        squares[label] += float(value.detach().double().square().sum())
    return {label: square**0.5 for label, square in squares.items()}


def _zeros(net: nn.Module) -> Iterator[tuple[str, Tensor]]:
    if isinstance(net, ControlLLLite):
        for path, part in net.parts().items():
            block = path.split(".transformer_blocks")[0].rpartition(".")[0] or path
            yield from ((block, value) for value in part.up.parameters())
        return
    hint = getattr(net, "input_hint_block", None)
    if isinstance(hint, nn.Sequential):
        yield from ((HINT, value) for value in hint[-1].parameters())
    convolutions = getattr(net, "zero_convs", ())
    for index, zero in enumerate(convolutions):
        yield from ((f"z{index}", value) for value in zero.parameters())
    middle = getattr(net, "middle_block_out", None)
    if isinstance(middle, nn.Module):
        yield from ((MIDDLE, value) for value in middle.parameters())
