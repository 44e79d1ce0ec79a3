"""Inside a host: the base model, the nets by everybody's nodes, and samplings."""

from __future__ import annotations

import asyncio
import inspect
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.k_diffusion.sampling
import comfy.sample
import comfy.samplers
import comfy.sd
import folder_paths
import torch
from apply_variants import ADVANCED, BUILT_IN, NONE, SPEED_NODE, Variant
from safetensors.torch import save_file
from torch import Tensor

import nodes

NET = "apply.safetensors"
CFG = 3.0
LENGTH = 20
"""Steps of the sampling that is spoken of: what is done once per sampling counts for as many."""


class Missing(Exception):
    """This version of a pack, or this host, can't do what a variant wants; says what is missing."""


@dataclass(frozen=True)
class Measured:
    """Seconds of a mean step in a sampling of LENGTH steps, and of encoding hints where once.

    cpu: the mean step's seconds of processor time, of all threads.
    """

    step: float
    cpu: float
    once: float


@dataclass
class Stopwatch:
    """Wall-clock and processor seconds between its starts and stops."""

    wall: float = 0.0
    cpu: float = 0.0

    def start(self, *_: Any) -> None:
        self.wall -= time.perf_counter()
        self.cpu -= time.process_time()

    def stop(self, *_: Any) -> None:
        self.wall += time.perf_counter()
        self.cpu += time.process_time()


def node(name: str) -> Any:
    """The class of a node."""
    if name not in nodes.NODE_CLASS_MAPPINGS:
        raise Missing(f"no node {name}")
    return nodes.NODE_CLASS_MAPPINGS[name]


def call(name: str, *given: Any, **inputs: Any) -> Any:
    """The outputs of a node; raises Missing for an input that it doesn't have."""
    execute = node(name).execute
    unknown = inputs.keys() - inspect.signature(execute).parameters.keys()
    if unknown:
        raise Missing(f"{name} has no input {', '.join(sorted(unknown))}")
    return execute(*given, **inputs).args


def seeded(state: dict[str, Tensor], seed: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights that keep what they compute near 1, none of them zero, for shapes on `meta`."""
    generator = torch.Generator().manual_seed(seed)

    def fresh(key: str, shape: torch.Size) -> Tensor:
        numbers = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return numbers.div_(numbers[0].numel() ** 0.5)
        return numbers.div_(16).add_(float(key.endswith("weight")))

    return {key: fresh(key, value.shape).to(dtype) for key, value in state.items()}


class World:
    """A base model with its net: SD 1.5 with random weights, or the pack's embedded model."""

    def __init__(self, core: Any, small: bool, advanced: str | None) -> None:
        self.cuda = torch.cuda.is_available() and not comfy.cli_args.args.cpu
        self.small, self.size = small, 16 if small else 64
        self.advanced = bool(advanced) and self._load_pack(Path(advanced or ""))
        self.nets: dict[Any, Any] = {}
        if small:
            self.switch()
            self.name, self.width, self.tokens = "embedded: canny", 128, 32
            (self._folder() / NET).symlink_to(core.tiny.weights("canny"))
        else:
            self.model = self._full(core)
            self.name, self.width, self.tokens = NET, core.SD15.context_dim, 77

    def switch(self) -> None:
        """Drops the embedded model and the nets, and loads the model anew."""
        self.nets.clear()
        self.model, self.clip, self.vae, self.example = call("CLDM_LoadTinyModel")

    @staticmethod
    def _folder() -> Path:
        folder = Path(folder_paths.get_folder_paths("controlnet")[0])
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    @staticmethod
    def _load_pack(folder: Path) -> bool:
        before = set(nodes.NODE_CLASS_MAPPINGS)
        return asyncio.run(
            nodes.load_custom_node(str(folder), before, module_parent="custom_nodes")
        )

    def _full(self, core: Any) -> Any:
        dtype = torch.float16 if self.cuda else torch.float32
        with torch.device("meta"):
            unet = core.ControlledUNet(core.SD15).state_dict()
            net = core.ControlNet(core.ControlNetConfig(core.SD15)).state_dict()
        save_file(seeded(net, 2, dtype), self._folder() / NET)
        return comfy.sd.load_diffusion_model_state_dict(seeded(unet, 1, dtype))

    def prompts(self) -> tuple[Any, Any]:
        """Random embeddings of two prompts."""
        generator = torch.Generator().manual_seed(4)
        shape = (1, self.tokens, self.width)
        positive, negative = (torch.randn(shape, generator=generator) for _ in range(2))
        return [[positive, {"pooled_output": None}]], [[negative, {"pooled_output": None}]]

    def hint(self, frames: int, size: int) -> Tensor:
        generator = torch.Generator().manual_seed(5)
        return torch.rand(frames, 8 * size, 8 * size, 3, generator=generator)

    def net(self, variant: Variant) -> Any:
        """The CONTROL_NET of a variant; each kind is loaded once."""
        key = (variant.by, tuple(variant.load.items()))
        if key not in self.nets:
            self.nets[key] = self.load(variant)
        return self.nets[key]

    def load(self, variant: Variant) -> Any:
        """A CONTROL_NET by the loader that the variant uses."""
        if variant.by == BUILT_IN:
            return nodes.ControlNetLoader().load_controlnet(NET)[0]
        if variant.by == ADVANCED:
            if not self.advanced:
                raise Missing("Advanced-ControlNet isn't given, or doesn't load in this host")
            return call("ACN_ControlNetLoaderAdvanced", NET)[0]
        return call("CLDM_LoadControlNet", self.name, **variant.load)[0]

    def controlled(
        self, variant: Variant, control: Any, prompts: tuple[Any, Any], hint: Tensor
    ) -> tuple[Any, Any]:
        """Both prompts behind the variant's Apply node."""
        if variant.by == NONE:
            return prompts
        inputs = (*prompts, control, hint, 1.0, 0.0)
        if variant.by == BUILT_IN:
            return nodes.ControlNetApplyAdvanced().apply_controlnet(*inputs, 1.0)
        if variant.by == ADVANCED:
            return call("ACN_AdvancedControlNetApply_v2", *inputs, 1.0)
        further = {"end_percent": 1.0, **variant.apply}
        if variant.speed:
            further["options"] = call(SPEED_NODE, **variant.speed)[0]
        return call("CLDM_ApplyControlNet", *inputs, **further)

    def measure(self, variant: Variant, repeat: int = 1, size: int | None = None) -> Measured:
        """One sampling by euler/normal with cfg; `repeat` times as long as the shortest one."""
        size = size or self.size
        control = None if variant.by == NONE else self.net(variant)
        hint = self.hint(variant.frames, size)
        prompts = self.controlled(variant, control, self.prompts(), hint)
        timer, steps = Timer(self.cuda), variant.steps * repeat
        with HintTime(control, off=self.cuda or variant.by in (BUILT_IN, ADVANCED)) as hints:
            self.sample(prompts, steps, seed=6, frames=variant.frames, size=size, sampler=timer)
        all_of, once = timer.watch, hints.watch
        wall = (all_of.wall - once.wall) / steps + once.wall / LENGTH
        return Measured(wall, (all_of.cpu - once.cpu) / steps + once.cpu / LENGTH, once.wall)

    def sample(
        self,
        prompts: tuple[Any, Any],
        steps: int,
        *,
        seed: int,
        frames: int = 1,
        size: int | None = None,
        sampler: Any = comfy.k_diffusion.sampling.sample_euler,
    ) -> Tensor:
        """Latents of the host's sampler."""
        latent = torch.zeros(frames, 4, size or self.size, size or self.size)
        noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(seed))
        schedule = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(schedule, "normal", steps)
        return comfy.sample.sample_custom(
            self.model,
            noise,
            CFG,
            comfy.samplers.KSAMPLER(sampler),
            sigmas,
            *prompts,
            latent,
            disable_pbar=True,
            seed=seed,
        )


class Timer:
    """euler, timed: loading and what else the host does around the steps is left out."""

    def __init__(self, cuda: bool) -> None:
        self.wait = torch.cuda.synchronize if cuda else lambda: None
        self.watch = Stopwatch()

    def __call__(self, model: Any, x: Tensor, sigmas: Tensor, **options: Any) -> Tensor:
        self.wait()
        self.watch.start()
        found = comfy.k_diffusion.sampling.sample_euler(model, x, sigmas, **options)
        self.wait()
        self.watch.stop()
        return found


class HintTime:
    """Times a net's hint encoder while this is open; not where `off`: where it runs each step."""

    def __init__(self, control: Any, off: bool) -> None:
        encoder = getattr(getattr(control, "net", None), "input_hint_block", None)
        self.encoder = None if off else encoder
        self.watch = Stopwatch()

    def __enter__(self) -> HintTime:
        self.hooks = []
        if self.encoder is not None:
            self.hooks = [
                self.encoder.register_forward_pre_hook(self.watch.start),
                self.encoder.register_forward_hook(self.watch.stop),
            ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()
