"""All cases of applied control, in one process of a host; `run_in_host` starts it."""

import importlib
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

import world

GROUPS = ("sides", "modes", "time", "frames", "areas", "parts", "others", "tokens", "ends", "shown")
GROUPS += ("lent",)
here = world.World(pack)  # noqa: F821  the runner gives it
found = {}
for group in args.get("groups", GROUPS):  # noqa: F821
    module = importlib.import_module(f"apply_{group}")
    found[group] = world.answers(here, module.cases(args))  # noqa: F821
report(**found)  # noqa: F821
