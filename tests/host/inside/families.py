"""All cases of this folder, in one process of a host; `run_in_host` starts it."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import bound
import equal
import lllite
import rest
import world

here = world.World(pack)  # noqa: F821  the runner gives it
report(  # noqa: F821
    equal=world.answers(here, equal.CASES),
    bound=world.answers(here, bound.CASES),
    lllite=world.answers(here, lllite.cases(args["kohya"])),  # noqa: F821
    rest=world.answers(here, rest.cases(args["others"])),  # noqa: F821
)
