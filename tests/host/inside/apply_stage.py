"""What the cases of applied control share: a base model with a net, samplers, and spies."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from torch import Tensor
from world import World

SIZE = (16, 16)
Controls = dict[str, list[Tensor | None]]


class Stage:
    """One base model, a ControlNet for it, and a hint."""

    def __init__(self, world: World, base: str = "demo", size: tuple[int, int] = SIZE) -> None:
        self.world, self.size = world, size
        self.model = getattr(world, base)
        self.path = world.save(f"apply {base}", world.controlnet(self.model))
        self.control = world.ours(self.path)
        self.hint = world.hint(8 * size[0], 8 * size[1])
        self.options = world.pack("nodes.options")
        self.prompts = world.prompts()

    @property
    def net(self) -> Any:
        return self.control.patcher.model

    @property
    def unet(self) -> Any:
        return self.model.model.diffusion_model

    def applied(
        self,
        control: Any = None,
        hint: Tensor | None = None,
        strength: float = 1.0,
        window: tuple[float, float] = (0.0, 1.0),
        prompts: Any = None,
        **inputs: Any,
    ) -> Any:
        """Both prompts behind our Apply node; inputs: its others, by their names."""
        return self.world.apply.ApplyControlNet.execute(
            *(prompts or self.prompts),
            control or self.control,
            self.hint if hint is None else hint,
            strength,
            *window,
            **{"fit": "as ComfyUI", **inputs},
        ).args

    def patched(
        self,
        control: Any = None,
        hint: Tensor | None = None,
        strength: float = 1.0,
        window: tuple[float, float] = (0.0, 1.0),
        model: Any = None,
        **inputs: Any,
    ) -> Any:
        """The MODEL behind our Patch Model node."""
        return self.world.apply.PatchModel.execute(
            model or self.model,
            control or self.control,
            self.hint if hint is None else hint,
            strength,
            *window,
            **{"fit": "as ComfyUI", **inputs},
        ).args[0]

    def noise(self, batch: int = 1, seed: int = 6) -> Tensor:
        return torch.randn(batch, 4, *self.size, generator=torch.Generator().manual_seed(seed))

    def sample(
        self,
        prompts: Any = None,
        model: Any = None,
        *,
        batch: int = 1,
        steps: int = 3,
        sampler: str = "euler",
        noise: Tensor | None = None,
        denoise: float = 1.0,
        cfg: float = 3.0,
        callback: Any = None,
    ) -> Tensor:
        """Latents of the host's sampler."""
        positive, negative = prompts or self.prompts
        noise = self.noise(batch) if noise is None else noise
        return comfy.sample.sample(
            model or self.model,
            noise,
            steps,
            cfg,
            sampler,
            "normal",
            positive,
            negative,
            torch.zeros_like(noise),
            denoise=denoise,
            callback=callback,
            disable_pbar=True,
        )

    def guided(self, guider: Any, steps: int = 3, *, flipped: bool = False) -> Tensor:
        """Latents of a guider; flipped: with the sigmas of Flip Sigmas."""
        sampling = self.model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", steps)
        if flipped:
            sigmas = torch.cat([torch.tensor([1e-4]), sigmas.flip(0)[1:]])
        noise = self.noise()
        return guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            disable_pbar=True,
            seed=1,
        )

    def controls(self, prompts: Any = None, model: Any = None, **options: Any) -> list[Controls]:
        """What each call of the UNet got to add, in the host's form; empty where nothing."""
        found: list[Controls] = []

        def keep(*args: Any, control: Any = None, **kwargs: Any) -> None:
            found.append({} if control is None else {k: list(control[k]) for k in control})

        with before(self.unet, "forward", keep):
            self.sample(prompts, model, **options)
        return found

    @contextmanager
    def counted(self, net: Any = None) -> Iterator[Counts]:
        """Rows of each call of the net, of its hint encoder and of the UNet."""
        counts = Counts()
        net = net or self.net
        with (
            before(net, "forward", lambda *given: counts.net.append(rows_of(*given))),
            before(net, "encode_hint", lambda hint, *_, **__: counts.hints.append(hint)),
            before(self.unet, "forward", lambda x, *_, **__: counts.unet.append(x.shape[0])),
        ):
            yield counts


Act = Callable[[Stage], Any]
"""What a case does on its stage."""


def rows_of(x: Tensor, _: Any, __: Any, context: Tensor, *___: Any) -> int:
    """How many rows a net computes: pictures with several texts are given once."""
    return max(x.shape[0], context.shape[0])


class Counts:
    """Rows of each call; hints: what was encoded."""

    def __init__(self) -> None:
        self.net: list[int] = []
        self.unet: list[int] = []
        self.hints: list[Any] = []


@contextmanager
def before(thing: Any, name: str, look: Callable[..., None]) -> Iterator[None]:
    """Has `look` called with the arguments of each call of a method."""
    original = getattr(thing, name)

    def watched(*args: Any, **kwargs: Any) -> Any:
        look(*args, **kwargs)
        return original(*args, **kwargs)

    with replaced(thing, name, watched):
        yield


@contextmanager
def replaced(thing: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute with another value for a while."""
    own = name in vars(thing)
    kept = vars(thing).get(name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        if own:
            setattr(thing, name, kept)
        else:
            delattr(thing, name)


@contextmanager
def logged(level: int = logging.WARNING) -> Iterator[list[str]]:
    """What is logged meanwhile, of at least this level."""
    lines: list[str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger().addHandler(handler)
    try:
        yield lines
    finally:
        logging.getLogger().removeHandler(handler)


def on_stage(
    *acts: Act, size: tuple[int, int] = SIZE, **named: Act
) -> dict[str, Callable[[World], Any]]:
    """Cases by name that share a stage of the demo model, which is made for the first of them."""
    made: list[Stage] = []

    def on(act: Act) -> Callable[[World], Any]:
        def run(world: World) -> Any:
            if not made:
                made.append(Stage(world, size=size))
            return act(made[0])

        return run

    return {name: on(act) for name, act in [*((act.__name__, act) for act in acts), *named.items()]}


def tensors(control: Controls) -> list[Tensor]:
    """The residuals in the order of `weigh`: of input, of output, the middle."""
    given = [*reversed(control["input"]), *control["output"], *control["middle"]]
    return [item for item in given if item is not None]


def ratios(some: Controls, others: Controls) -> list[float]:
    """How many times the others the residuals of a call are, each by its length."""
    pairs = zip(tensors(some), tensors(others), strict=True)
    return [round(float((a * b).sum() / (b * b).sum()), 5) for a, b in pairs]


def apart(some: Controls, others: Controls, factors: Sequence[float] | None = None) -> float:
    """The largest difference of two calls' residuals, the second times factors."""
    pairs = list(zip(tensors(some), tensors(others), strict=True))
    factors = factors or [1.0] * len(pairs)
    return max(float((a - b * f).abs().max()) for (a, b), f in zip(pairs, factors, strict=True))


def control_of(prompts: Any) -> Any:
    """The control on the first prompt."""
    return prompts[0][0][1]["control"]
