"""The nodes of the pack; the host asks `Extension` for them."""

from __future__ import annotations

from comfy_api.v0_0_2 import ComfyExtension, io

from .annotate import ANNOTATOR_NODES
from .apply import ApplyControlNet, PatchModel
from .load import InspectControlNet, LoadControlNet, LoadTinyModel
from .surgery import ExtractControlLora, MergeControlNets, SaveControlNet, TransferControlNet
from .union import AddUnionHint, SetControlType

NODES: list[type[io.ComfyNode]] = [
    LoadControlNet,
    LoadTinyModel,
    InspectControlNet,
    SetControlType,
    AddUnionHint,
    ApplyControlNet,
    PatchModel,
    MergeControlNets,
    TransferControlNet,
    ExtractControlLora,
    SaveControlNet,
    *ANNOTATOR_NODES,
]


class Extension(ComfyExtension):
    """What the pack adds to the host."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
