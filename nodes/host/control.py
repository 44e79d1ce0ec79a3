"""CONTROL_NETs: what the host's sampler asks for residuals, around a net of the core."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import comfy.ldm.modules.attention
import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor

from ...cldm_core import ControlNet, Residuals
from ...cldm_core.checkpoint.describe import base_name
from ...cldm_core.graphs import RecordedNet, side_stream
from ...cldm_core.hints import HINT_SCALE
from ...cldm_core.masks import residual_sizes
from .checks import check_model, unet_config_of
from .clock import Moment
from .hints import Encoded, Hints, cycled, distinct_areas, fitted, hint_numbers
from .lazy import StreamedResiduals, has_compiled_parts, will_be_compiled
from .residuals import HostResiduals, spread
from .rows import Area
from .sizes import follow_blocks
from .steered import Call, Controls, Place, Steered


def patcher_for(module: torch.nn.Module, device: torch.device) -> Any:
    """The module under the host's memory management."""
    # Newer hosts re-bind the name at start to the class that fits the machine.
    patcher = getattr(comfy.model_patcher, "CoreModelPatcher", comfy.model_patcher.ModelPatcher)
    if hasattr(comfy.model_management, "archive_model_dtypes"):
        comfy.model_management.archive_model_dtypes(module)
    return patcher(
        module, load_device=device, offload_device=comfy.model_management.unet_offload_device()
    )


class Origin(NamedTuple):
    """Where a net's weights come from: name and metadata of the file, and how it stores them.

    kind: what the file holds, such as "Control-LoRA".
    """

    name: str
    kind: str
    metadata: Mapping[str, str]
    dtype: torch.dtype


class HostControl(Steered):
    """A CONTROL_NET around a ControlNet or a T2I-Adapter; other families override a method or two.

    Copies share the net and its patcher.
    """

    def __init__(self, patcher: Any, compute_type: torch.dtype) -> None:
        super().__init__()
        self.patcher = patcher
        self.compute_type = compute_type
        self.source: Origin | None = None
        self.model_sampling: Any = None
        self.model_config: Any = None
        self.encoded = Encoded()
        self.recorded: RecordedNet | None = None
        self.streams = False

    @property
    def net(self) -> Any:
        """The net of the core."""
        return self.patcher.model

    @property
    def title(self) -> str:
        own = type(self.net).__name__
        name, kind = (self.source.name, self.source.kind) if self.source else (own, own)
        return f"{name}: {kind} for {base_name(self.net.config)}"

    @property
    def only_positive(self) -> bool:
        # Pooled nets by their author's advice (README of ControlNet 1.1, shuffle).
        return self.settings.only_positive or self.pooled

    @property
    def pooled(self) -> bool:
        """Whether the net's residuals are averaged over the picture."""
        return bool(getattr(self.net.config, "global_average_pooling", False))

    def copy(self) -> HostControl:
        """The same net with settings of its own; the host's apply nodes call this."""
        other = type(self)(self.patcher, self.compute_type)
        self.copy_to(other)
        return other

    def copy_to(self, other: Any) -> None:
        """Gives another control the same settings."""
        super().copy_to(other)
        other.source = self.source

    def get_models(self) -> list[Any]:
        """What the host must have on the device before it samples."""
        return [*super().get_models(), self.patcher]

    def check_settings(self) -> None:
        self.settings.weights(self.net)

    def pre_run(self, model: Any, percent_to_timestep_function: Any) -> None:
        """Called once per sampling, before its first step; refuses a model of another family."""
        self.check_settings()
        check_model(self.net, model)
        super().pre_run(model, percent_to_timestep_function)
        self.encoded.clear()
        self.model_sampling = model.model_sampling
        self.model_config = unet_config_of(model)
        self.weights = self.settings.weights(self.net)
        # What a compiler makes of code may lose that it waits for another stream.
        self.streams = not has_compiled_parts(model.diffusion_model)
        if self.settings.record_calls and _can_be_recorded(self.net):
            # Nobody reads a call's residuals once the next one begins, but these two.
            kept = self.settings.reuse > 1 or self.record is not None
            self.recorded = RecordedNet(self.net, lends=not kept)
        if self.applied is not None:
            self.applied.weights = self.weights

    def _drop(self) -> None:
        if self.recorded is not None:
            self.recorded.drop()
            if self.applied is not None:
                self.applied.counts.played += self.recorded.played
        super()._drop()
        self.model_sampling = self.model_config = self.recorded = None
        self.encoded.clear()

    def _prepare(self, call: Call) -> None:
        if self.model_config is not None:
            follow_blocks(call.options, call.cond, residual_sizes(self.model_config, *call.size))

    def _begun(self, call: Call) -> Controls | None:
        """The control; where a GPU plays the net from a recording, beside the UNet's encoder.

        The encoder doesn't read it yet. Both streams have waited for each other where a call
        begins, so that neither writes to memory that the other still reads.
        """
        device = call.x.device
        recorded = self.recorded is not None and self.recorded.warm
        streams = self.streams and not will_be_compiled(call.options)
        if not recorded or not streams or not self.may_wait:
            return self._control(call)
        side, current = side_stream(device), torch.cuda.current_stream(device)
        if current == side:  # for a control behind this one in the chain
            return self._control(call)
        current.wait_stream(side)
        side.wait_stream(current)
        with torch.cuda.stream(side):
            found = self._control(call)
        return None if found is None else StreamedResiduals(found, side)

    def _own(self, call: Call, place: Place, now: Moment) -> HostResiduals | None:
        found = self._found(call, place, now)
        sizes = residual_sizes(self.net.unet_config, *call.size) if self.pooled else None
        return self._shaped(found, call, place, now, self.weights, sizes)

    def _computed(self, call: Call, place: Place) -> Residuals:
        dtype = self.compute_type
        rows = None if place.whole else torch.tensor(place.rows, device=call.x.device)

        def chosen(item: Tensor) -> Tensor:
            return item if rows is None else item[rows.to(item.device)]

        pictures = slice(len(place.batch.frames) if self._same_pictures(call, place) else None)
        x, t = chosen(call.x)[pictures], chosen(call.t)[pictures]
        context = call.cond.get("crossattn_controlnet", call.cond["c_crossattn"])
        y = call.cond.get("y")
        # In bfloat16 there is no number between 896 and 900: whole steps would fall together.
        times = torch.float32 if dtype == torch.bfloat16 else dtype
        net = self.recorded or self.net
        return net(  # type: ignore[no-any-return]
            self.model_sampling.calculate_input(t, x).to(dtype),
            self._features(call, place, pictures),
            self.model_sampling.timestep(t).to(times),
            chosen(context).to(x.device, dtype),
            None if y is None else chosen(y).to(dtype),
        )

    def _same_pictures(self, call: Call, place: Place) -> bool:
        """Whether every prompt of a call sees the same latents and nothing but its text differs.

        Then a ControlNet computes what stands in front of the first text once for all prompts.
        """
        rows = place.batch.prompts
        return bool(
            not self.settings.as_host
            and place.whole
            and call.prompts > 1
            and len(rows) == call.prompts
            and call.cond.get("y") is None
            and isinstance(self.net, ControlNet)
            and self.net.unet_config.context_dim is not None
            and all(row is not None and row == rows[0]._replace(side=row.side) for row in rows)
            and call.size == (rows[0].area[:2] if rows[0].area else rows[0].size)
            and self._tile(call) is None
            # Packs may change some rows on their way to the model.
            and (call.x.unflatten(0, (call.prompts, -1)) == call.x[: len(place.batch.frames)]).all()
        )

    def _features(self, call: Call, place: Place, chosen: slice = slice(None)) -> Any:
        """The encoded hints of the rows, computed once per sampling, size, area and hint.

        chosen: which of the rows of `place`.
        """
        batch, device = place.batch, call.x.device
        hints, tiled = self._hints_for(call), self._tile(call) is not None
        areas = (None,) if tiled else distinct_areas(batch)
        # A pack that puts several tiles into a call brings the hint of each row.
        each_row = tiled and len(batch) == max(hint.shape[0] for hint in hints.values()) > 1
        total = len(batch) if each_row else batch.total
        given = {min(hint.shape[0], total) for hint in hints.values()} - {1}
        most = total if len(given) > 1 else max(given, default=1)

        def encode() -> Any:
            return self._encode(
                {
                    kind: self._fitted(hint if alike else cycled(hint, most), areas, call)
                    for kind, hint in hints.items()
                    for alike in [hint.shape[0] == 1 and len(areas) == 1]
                }
            )

        key = (call.size, batch.whole or call.size, areas, most, device, self.compute_type)
        numbers = place.rows if each_row else hint_numbers(batch, place.rows, areas, most)
        return spread(self.encoded.get(hints, key, encode), numbers[chosen])

    def _fitted(self, hint: Tensor, areas: Sequence[Area | None], call: Call) -> Tensor:
        """A hint in the size of a call's latents, with the net's channels; see `fitted`."""
        # SDXL's T2I-Adapters look at squares of 16 pixels. Ours pad a hint to them, the host's
        # stretch it.
        multiple = getattr(self.net.config, "unshuffle", 1) if self.settings.as_host else 1
        sizes = (call.size, call.batch.whole or call.size)
        found = fitted(self._channels(hint), areas, sizes, self.settings, multiple)
        return found.to(call.x.device, self.compute_type)

    def _tile(self, call: Call) -> Tensor | None:
        tile = self.cond_hint
        wanted = tuple(HINT_SCALE * side for side in call.size)
        return tile if tile is not None and tuple(tile.shape[2:]) == wanted else None

    def _hints_for(self, call: Call) -> Hints:
        tile = self._tile(call)
        return self._hints(self.cond_hint_original if tile is None else tile)

    def _sources(self, call: Call) -> tuple[Tensor, ...]:
        return tuple(self._hints_for(call).values())

    def _hints(self, hint: Tensor) -> Hints:
        """The hints (B, C, H, W) in [0, 1], by their type where the net knows types."""
        return {None: hint}

    def _encode(self, hints: Hints) -> Any:
        (hint,) = hints.values()
        return self.net.encode_hint(hint)

    @property
    def hint_channels(self) -> int:
        """How many channels the net's hints have."""
        channels: int = self.net.config.hint_channels
        return channels

    def _channels(self, hint: Tensor) -> Tensor:
        """A grey hint as RGB, and one with transparency without it."""
        wanted = self.hint_channels
        if hint.shape[1] == 1:
            return hint.expand(-1, wanted, -1, -1)
        # An adapter for grey pictures takes the mean of the colours itself.
        return hint[:, : max(wanted, 3)]

    def deepclone_multigpu(self, load_device: Any, autoregister: bool = False) -> HostControl:
        """A copy with a net of its own for another GPU, as hosts of late 2026 ask for."""
        other = type(self)(
            patcher_for(copy.deepcopy(self.patcher.model), load_device), self.compute_type
        )
        self.copy_to(other)
        if autoregister:
            self.multigpu_clones[load_device] = other
        return other


def _can_be_recorded(net: Any) -> bool:
    """Whether a net's forward launches work for the GPU and nothing else.

    Other nets read what isn't theirs, or more than tensors; other attentions may look at the memory
    that is left, or compile.
    """
    pytorch = getattr(comfy.ldm.modules.attention, "attention_pytorch", None)
    used = comfy.ldm.modules.attention.optimized_attention
    return type(net) is ControlNet and pytorch is not None and used is pytorch
