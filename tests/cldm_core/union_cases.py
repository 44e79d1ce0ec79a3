"""The union ControlNets and inputs whose results were recorded from references (data/README.md)."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .parity_cases import INPUT_SEED, Case, Inputs, Params, _small_sdxl
from .seeded import seeded_tensor

UNION_SEED = 5


@dataclass(frozen=True)
class UnionCase:
    """A union net, the numbers of the types that are on, and what it is fed."""

    name: str
    control_types: int
    numbers: tuple[int, ...]
    batch: int = 1
    hints: int = 1  # for the batch

    @property
    def case(self) -> Case:
        times = (801, 3)[: self.batch]
        return Case(self.name, _small_sdxl(), size=(4, 8), timesteps=times)

    @property
    def params(self) -> Params:
        return self.case.control_params

    @property
    def values(self) -> dict[str, Any]:
        return {"control_types": self.control_types}

    def inputs(self) -> Inputs:
        return self.case.inputs()

    def hints_by_number(self) -> dict[int, Tensor]:
        height, width = (8 * side for side in self.case.size)
        shape = (self.hints, 3, height, width)
        return {
            number: seeded_tensor(shape, f"{self.name}/hint {number}", INPUT_SEED) / 12**0.5 + 0.5
            for number in self.numbers
        }


# From the author's code.
AUTHOR = (
    UnionCase("one_of_6", 6, (3,)),
    UnionCase("two_of_6", 6, (1, 3)),
    UnionCase("all_of_6", 6, (0, 1, 2, 3, 4, 5)),
    UnionCase("one_of_8", 8, (6,)),
    UnionCase("three_of_8", 8, (0, 6, 7)),
    UnionCase("two_in_a_batch", 8, (1, 7), batch=2),
)

# From ComfyUI's, whose attention sees the types of one picture: one type.
HOST = (
    UnionCase("host_one_of_6", 6, (0,)),
    UnionCase("host_one_of_8", 8, (7,), batch=2, hints=2),
)
