"""Files of the host's folders: found, loaded as CONTROL_NETs, or left to the host's own loader."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, count
from pathlib import Path
from typing import Any, NamedTuple

import comfy.controlnet
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...cldm_core import SD21, CldmError, ControlNetConfig, UnsupportedCheckpoint
from ...cldm_core import load_control as load_net
from ...cldm_core.checkpoint import Checkpoint, controlnet_config_of, read
from ...cldm_core.checkpoint.dtypes import common_type, is_scaled
from ...cldm_core.checkpoint.families import FAMILIES
from ...cldm_core.checkpoint.formats import Where, control_part, recognise
from ...cldm_core.checkpoint.load import contents, unknown_file
from ...cldm_core.checkpoint.write import is_named_pooled, stored_pooling
from ...cldm_core.config import UNetConfig
from ..log import log
from .control import HostControl, Origin, patcher_for
from .kinds import kind_of_control

SUPPORTED_TYPES = (torch.float16, torch.bfloat16, torch.float32)
OLD_FOLDER = "unet"
"""Of `diffusion_models`: the host still finds what is there, and puts nothing into it."""


class Loaded(NamedTuple):
    """A CONTROL_NET, this pack's or the host's, and what a user should know of it."""

    control: Any
    notes: tuple[str, ...]


def controlnet_files() -> list[str]:
    """Names of the files in the host's `controlnet` folders."""
    names: list[str] = folder_paths.get_filename_list("controlnet")
    return names


def controlnet_path(name: str) -> Path:
    """The file of that name in the host's `controlnet` folders; the host's error if none is."""
    return Path(folder_paths.get_full_path_or_raise("controlnet", name))


def controlnet_name(path: Path) -> str:
    """The name of a file of `new_controlnet_path`, as loaders show it."""
    folder = Path(folder_paths.get_folder_paths("controlnet")[0]).resolve()
    return path.relative_to(folder).as_posix()


class HostAttention:
    """The attention that the host was started with, looked up at each call: packs exchange it."""

    precision: torch.dtype | None = None

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, /) -> Tensor:
        mixed: Tensor = comfy.ldm.modules.attention.optimized_attention(
            q, k, v, heads, attn_precision=self.precision
        )
        return mixed


def load_control(
    path: Path,
    *,
    pooling: bool | None = None,
    head_channels: int | None = None,
    precision: torch.dtype | None = None,
) -> Loaded:
    """The control net of a file as a CONTROL_NET.

    Families of this pack come in types and layers by the host's own rules, all others from the
    host's own loader. pooling: whether residuals are averaged over the picture; None takes what the
    file's metadata says, else goes by the name as the host does. head_channels: of the attentions'
    heads; None goes by the family's rule. precision: in which the net is kept and computed; None
    leaves it to the host. Raises CldmError.
    """
    checkpoint = read(path)
    kind = recognise(control_part(checkpoint.tensors))
    if kind is None or kind.where is Where.HOST:
        return _from_host(path, checkpoint)
    config = None
    if head_channels is not None:
        config = controlnet_config_of(checkpoint, head_channels=head_channels)
    control = as_control(checkpoint, config, precision)
    pooled = _pool(control, path, pooling, stored_pooling(checkpoint))
    notes = (*pooled, f"Computed in {_type_name(control.compute_type)}.")
    log.info("Loaded %s.", path.name)
    return Loaded(control, notes)


def as_control(
    source: Checkpoint, config: Any = None, precision: torch.dtype | None = None
) -> HostControl:
    """The control net of a checkpoint as a CONTROL_NET; config None reads it from the checkpoint.

    precision: as in load_control. Raises CldmError.
    """
    device = comfy.model_management.get_torch_device()
    # The host keeps 8-bit weights narrow; those with scales have to be multiplied out first.
    scaled = is_scaled(source.tensors)
    kind = contents(source)[0]
    bound = FAMILIES[kind.name].bound
    if bound and precision is not None:
        raise CldmError(
            f"{source.name} builds upon the base model's weights and computes in their type: set "
            f"precision to auto."
        )
    stored = precision or comfy.model_management.unet_dtype(
        model_params=-1,
        supported_dtypes=list(SUPPORTED_TYPES),
        weight_dtype=torch.float16 if scaled else comfy.utils.weight_dtype(source.tensors),
    )
    cast = None if precision else comfy.model_management.unet_manual_cast(stored, device)
    layers = comfy.ops.pick_operations(stored, cast)
    attention = HostAttention()
    # A net upon a base adds in its file's type, as in the host, and casts when it computes.
    dtype = None if bound else stored
    net = load_net(source, config=config, dtype=dtype, ops=layers, attention=attention)
    if _is_sd2(getattr(net, "unet_config", None)):
        # As in the host: half precision overflows in SD 2.x's attention.
        attention.precision = torch.float32
    patcher = patcher_for(net.requires_grad_(False), device)
    control = kind_of_control(net)(patcher, cast or stored)
    control.source = Origin(source.name, kind.noun, source.metadata, common_type(source.tensors))
    return control


def _is_sd2(config: UNetConfig | None) -> bool:
    """Whether a net is for SD 2.x, in whichever form its projections are stored."""
    known = (SD21.context_dim, SD21.model_channels)
    return config is not None and (config.context_dim, config.model_channels) == known


def _pool(
    control: HostControl, path: Path, pooling: bool | None, stored: bool | None
) -> tuple[str, ...]:
    """Sets whether residuals are averaged over the picture, and says so.

    pooling: what the node says; stored: what the file's metadata says; None where it says nothing.
    """
    config = control.net.config
    if not isinstance(config, ControlNetConfig):
        return () if pooling is None else ("Pooling: this kind of net has none.",)
    reason = "as set in the node"
    if pooling is None:
        pooling, reason = stored, "as the file says"
    if pooling is None:
        pooling, reason = is_named_pooled(path.name), "as its name says"
    if pooling != config.global_average_pooling:
        control.net.control_config = replace(config, global_average_pooling=pooling)
    if not pooling:
        return ("Pooling: off.",) if stored is None else (f"Pooling: off, {reason}.",)
    return (f"Pooling: on, {reason}; it acts on the positive side only.",)


def _from_host(path: Path, checkpoint: Checkpoint) -> Loaded:
    """The CONTROL_NET that the host's own loader makes of the file."""
    state = control_part(checkpoint.tensors)
    kind = recognise(state)
    try:
        control = comfy.controlnet.load_controlnet(str(path))
    except Exception as error:  # whatever a file that nobody knows makes the host do
        log.warning("The host's own loader failed on %s: %s", path.name, error)
        control = None
    if control is not None:
        what = "a file" if kind is None else kind.title
        return Loaded(control, (f"This is {what}: it was loaded by ComfyUI's own loader.",))
    if kind is None:
        raise UnsupportedCheckpoint(unknown_file(checkpoint.name, state))
    raise UnsupportedCheckpoint(
        f"{path.name} seems to hold {kind.title}, but this version of ComfyUI can't load it: the "
        f"console says why. A newer version may."
    )


def _type_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def new_controlnet_path(name: str) -> Path:
    """A file that isn't there yet in the host's first `controlnet` folder; raises CldmError."""
    return new_model_path(name, "controlnet")


def new_model_path(name: str, kind: str) -> Path:
    """A file that isn't there yet in the host's first folder of a kind; raises CldmError."""
    folders = [Path(one).resolve() for one in folder_paths.get_folder_paths(kind)]
    folder = next((one for one in folders if one.name != OLD_FOLDER), folders[0])
    wanted = (folder / f"{name.strip().removesuffix('.safetensors')}.safetensors").resolve()
    if not wanted.is_relative_to(folder) or wanted.stem in ("", ".safetensors"):
        raise CldmError(
            f"The file can't be called {name!r}: give a name, with folders inside of "
            f"models/{kind} in front if you like."
        )
    numbers = (wanted.with_stem(f"{wanted.stem}_{number}") for number in count(2))
    return next(path for path in chain([wanted], numbers) if not path.exists())
