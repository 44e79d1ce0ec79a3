"""What `run_in_host` starts with a host's interpreter: import the host, load the pack, run."""

import asyncio
import importlib
import json
import logging
import runpy
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


def main(task: dict[str, Any]) -> None:
    """Do one task; its record comes as JSON on the command line."""
    sys.path[0] = task["root"]
    sys.argv = [task["script"]]
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    prepare_host(task["base"])
    with Complaints() as complaints:
        name = load_pack(task["pack"])

    def pack(module: str = "") -> ModuleType:
        return importlib.import_module(f"{name}.{module}" if module else name)

    runpy.run_path(
        task["script"],
        init_globals={
            "args": task["args"],
            "complaints": complaints.lines,
            "pack": pack,
            "report": report,
        },
        run_name="__main__",
    )


class Complaints(logging.Handler):
    """Keeps what is logged or warned of while it is open."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []
        # The pack's own hands nothing on to the root.
        self.loggers = logging.getLogger(), logging.getLogger("ComfyUI-CLDM")

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.levelname} {record.name}: {record.getMessage()}")

    def __enter__(self) -> "Complaints":
        logging.captureWarnings(True)
        for logger in self.loggers:
            logger.addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        for logger in self.loggers:
            logger.removeHandler(self)
        logging.captureWarnings(False)


def prepare_host(base: str) -> None:
    """Choose the CPU before anything of the host asks which device there is."""
    from comfy.cli_args import args

    args.cpu = True
    args.use_pytorch_cross_attention = True
    args.base_directory = base
    import nodes  # noqa: F401  the host's own warnings belong to the host


def load_pack(folder: str) -> str:
    """Load the pack as the host does, and give the name under which the host keeps it."""
    import nodes

    before = set(nodes.NODE_CLASS_MAPPINGS)
    if not asyncio.run(nodes.load_custom_node(folder, before, module_parent="custom_nodes")):
        raise SystemExit(f"the host could not load the pack in {folder}")
    modules = (m for m in list(sys.modules.values()) if getattr(m, "__file__", None))
    return next(m.__name__ for m in modules if Path(m.__file__) == Path(folder) / "__init__.py")


def report(**values: Any) -> None:
    """Print the script's answer."""
    sys.stdout.write(f"\n{json.dumps(values)}\n")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
