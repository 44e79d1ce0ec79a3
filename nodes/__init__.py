"""The nodes of the pack; the host asks `Extension` for them."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .annotate import ANNOTATOR_NODES
from .contract import CONTROL, EMBEDDED, TRAINING, complaint, lacking
from .hints import HINT_NODES
from .log import log
from .pose import POSE_NODES

Nodes = list[type[io.ComfyNode]]


def control_nodes() -> Nodes:
    """The nodes around control nets."""
    from .apply import APPLY_NODES
    from .inspector import INSPECTOR_NODES
    from .load import LOAD_NODES
    from .options import OPTION_NODES
    from .surgery import SURGERY_NODES
    from .union import UNION_NODES

    return [
        *LOAD_NODES,
        *UNION_NODES,
        *APPLY_NODES,
        *OPTION_NODES,
        *INSPECTOR_NODES,
        *SURGERY_NODES,
    ]


def embedded_nodes() -> Nodes:
    """The node of the demo model."""
    from .tiny import TINY_NODES

    return TINY_NODES


def training_nodes() -> Nodes:
    """The nodes that train."""
    from .dataset import DATASET_NODES
    from .train import TRAINING_NODES

    return [*DATASET_NODES, *TRAINING_NODES]


PARTS = (
    (CONTROL, "the nodes around control nets, and those that train, are", control_nodes),
    (EMBEDDED, "Load Tiny Demo Model is", embedded_nodes),
    ((*CONTROL, *TRAINING), "the nodes that train are", training_nodes),
)
"""What needs which names of the host."""


def all_nodes() -> Nodes:
    """Every node that this host can have; says in one line what it can't, and why."""
    found: Nodes = []
    told: set[str] = set()
    for names, what, nodes in PARTS:
        missing = lacking(names)
        if not missing:
            found += nodes()
        elif not told.issuperset(missing):
            log.error(complaint(missing, what))
        told.update(missing)
    return [*found, *HINT_NODES, *ANNOTATOR_NODES, *POSE_NODES]


class Extension(ComfyExtension):
    """What the pack adds to the host."""

    async def get_node_list(self) -> Nodes:
        return all_nodes()
