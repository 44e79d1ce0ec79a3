"""The host's side of the annotators: folders, memory manager, progress and interrupts."""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
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
    """The host's `annotators` folders, of extra_model_paths too; then what others have.

    The first one is downloaded into: of the host's own the first that can be written to.
    """
    neighbours = [
        found
        for folder in folder_paths.get_folder_paths("custom_nodes")
        for found in sorted(Path(folder).glob(NEIGHBOUR))
    ]
    named = [Path(folder) for folder in (os.environ.get(NEIGHBOUR_VARIABLE),) if folder]
    own = [Path(folder) for folder in folder_paths.get_folder_paths(FOLDER)]
    own.sort(key=is_writable, reverse=True)
    return [*own, *weights.environment_folders(), *named, *neighbours]


def is_writable(folder: Path) -> bool:
    """Whether files can be put into the folder, which may have to be made first."""
    there = next((one for one in (folder, *folder.parents) if one.exists()), folder)
    return os.access(there, os.W_OK)


class AnnotatorNet(torch.nn.Module):
    """A network, or a session of another library, in the form that the host manages.

    The host writes attributes into what it manages; those of transformers refuse that.
    """

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing


class HostKeeper:
    """Networks under the host's memory manager: it counts them, and what it unloads is let go."""

    def __init__(self) -> None:
        self._patchers: dict[Hashable, Any] = {}

    @contextmanager
    def kept(
        self, key: Hashable, build: Callable[[], Any], device: Any, size: int = 0
    ) -> Iterator[Any]:
        """See annotators.keeper.Keeper."""
        where = comfy.model_management.get_torch_device() if device is None else device
        where = torch.device(where)
        place = key, str(where)
        patcher = self._patchers.get(place)
        if patcher is None:
            free(size, where)
            patcher = managed(build(), where)
            load(patcher)
            if size:
                patcher.size = patcher.model.model_loaded_weight_memory = size
            self._patchers[place] = patcher
            # The host's own record lives as long as it has the model loaded.
            weakref.finalize(record_of(patcher), self._patchers.pop, place, None).atexit = False
        elif isinstance(patcher.model.thing, torch.nn.Module):
            load(patcher)
        yield patcher.model.thing

    def make_room(self, *, everything: bool) -> None:
        """See annotators.keeper.Keeper; `everything` is what the host has loaded for others too."""
        if everything:
            comfy.model_management.unload_all_models()
        comfy.model_management.soft_empty_cache()


def free(size: int, device: torch.device) -> None:
    """Have the host make room for what takes its place on the device by itself."""
    if size and device.type != "cpu":
        spare = comfy.model_management.minimum_inference_memory()
        comfy.model_management.free_memory(size + spare, device)


def managed(thing: Any, device: torch.device) -> Any:
    """The thing under the host's memory management."""
    net = AnnotatorNet(thing)
    if isinstance(thing, torch.nn.Module):
        return patcher_for(net, device)
    # The host's class for dynamic memory would reserve it by the size of the parameters: none.
    offload = comfy.model_management.unet_offload_device()
    return comfy.model_patcher.ModelPatcher(net, load_device=device, offload_device=offload)


def load(patcher: Any) -> None:
    """Have the host load it whole, since these nets are small; it makes room first."""
    comfy.model_management.load_models_gpu([patcher], force_full_load=True)


def record_of(patcher: Any) -> Any:
    """What the host keeps of a model that it has loaded."""
    loaded = comfy.model_management.current_loaded_models
    return next(one for one in loaded if one.model is patcher)


def device() -> torch.device:
    """Where this host computes, as its command line has told it."""
    chosen: torch.device = comfy.model_management.get_torch_device()
    return chosen


def connect() -> None:
    """Hand the annotators this host's folders and memory manager."""
    folder = os.path.join(folder_paths.models_dir, FOLDER)
    # Before those of extra_model_paths, which the host has read by now.
    folder_paths.add_model_folder_path(FOLDER, folder, is_default=True)
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
