"""The host's side of the annotators: folders, memory manager, progress and interrupts."""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.utils
import folder_paths
import torch

from ...annotators import keeper, progress, weights
from .control import patcher_for

FOLDER = "annotators"
NEIGHBOUR = "*controlnet_aux/ckpts"
"""Where Fannovel16/comfyui_controlnet_aux keeps its weights, below a folder of custom nodes."""
NEIGHBOUR_VARIABLE = "AUX_ANNOTATOR_CKPTS_PATH"


def weight_folders() -> list[Path]:
    """The host's `annotators` folders, of extra_model_paths too; then what others have."""
    neighbours = [
        found
        for folder in folder_paths.get_folder_paths("custom_nodes")
        for found in sorted(Path(folder).glob(NEIGHBOUR))
    ]
    named = [Path(folder) for folder in (os.environ.get(NEIGHBOUR_VARIABLE),) if folder]
    own = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    return [*own, *weights.environment_folders(), *named, *neighbours]


class HostKeeper:
    """Networks under the host's memory manager: it counts them, and frees them when it must."""

    def __init__(self) -> None:
        self._patchers = keeper.Kept()

    @contextmanager
    def kept(self, key: Hashable, build: Callable[[], Any], device: Any) -> Iterator[Any]:
        """See annotators.keeper.Keeper; loaded whole, since these nets are small."""
        where = comfy.model_management.get_torch_device() if device is None else device
        where = torch.device(where)

        def managed() -> Any:
            thing = build()
            return patcher_for(thing, where) if isinstance(thing, torch.nn.Module) else thing

        thing = self._patchers.thing((key, str(where)), managed)
        if not hasattr(thing, "load_device"):
            yield thing
            return
        comfy.model_management.load_models_gpu([thing], force_full_load=True)
        yield thing.model


def device() -> torch.device:
    """Where this host computes, as its command line has told it."""
    chosen: torch.device = comfy.model_management.get_torch_device()
    return chosen


def connect() -> None:
    """Hand the annotators this host's folders and memory manager."""
    folder_paths.add_model_folder_path(FOLDER, os.path.join(folder_paths.models_dir, FOLDER))
    weights.folders = weight_folders
    keeper.use(HostKeeper())


@contextmanager
def told() -> Iterator[None]:
    """Inside, pictures and bytes move the node's bar, and an interrupt is honoured before each."""
    bars: dict[str, Any] = {}

    def listen(what: str, done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if total:
            bar = bars.setdefault(what, comfy.utils.ProgressBar(total))
            bar.update_absolute(done, total)

    with progress.told(listen):
        yield
