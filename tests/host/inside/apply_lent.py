"""Residuals that a recording of the GPU lends until its next call: nobody reads them any longer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from apply_stage import Stage, control_of, on_stage, replaced
from comfy.patcher_extension import WrappersMP
from torch import Tensor
from world import World, sentence


class Lender:
    """Stands in for `RecordedNet` where there is no GPU: spoils what it lent at its next call."""

    made: list[Lender]

    def __init__(self, net: Any, *, lends: bool = False) -> None:
        self.net, self.lends = net, lends
        self.warm, self.played, self.spoilt = False, 0, 0
        self._lent: list[Tensor] = []
        self.made.append(self)

    def __call__(self, *inputs: Tensor | None) -> Any:
        for tensor in self._lent:
            tensor.fill_(torch.nan)
            self.spoilt += 1
        found = self.net(*inputs)
        items = (*found.input, *found.output, *found.middle)
        self._lent = [item for item in items if item is not None] if self.lends else []
        return found

    def drop(self) -> None:
        """As `RecordedNet` does when the sampling ends: it is nobody's from here on."""
        for tensor in self._lent:
            tensor.fill_(torch.nan)


def ways(stage: Stage) -> dict[str, Callable[[], dict[str, Any]]]:
    """Arguments of `Stage.sample`, made anew for each sampling."""
    speed, size = stage.options.ControlSpeed, stage.size
    half = torch.linspace(0, 1, size[0] * size[1]).reshape(1, *size)

    def chain() -> Any:
        first = stage.applied(strength=0.7)
        return stage.applied(prompts=first, strength=0.4, window=(0.2, 1.0))

    def one_side() -> Any:
        """A control on the positive prompt alone."""
        return [stage.applied()[0], stage.prompts[1]]

    def recorded() -> Any:
        prompts = stage.applied()
        record = stage.world.pack("cldm_core.record").ControlRecord()
        for prompt in prompts:
            prompt[0][1]["control"].record = record
        return prompts

    return {
        "plain": lambda: {"prompts": stage.applied()},
        "chain": lambda: {"prompts": chain()},
        "mask": lambda: {"prompts": stage.applied(strength=0.5, mask=half)},
        "one prompt": lambda: {"prompts": one_side()},
        "two calls a step": lambda: {"prompts": stage.applied(), "sampler": "heun"},
        "pictures": lambda: {"prompts": stage.applied(), "batch": 3},
        "patched": lambda: {"model": stage.patched()},
        "reuse": lambda: {"prompts": stage.applied(options=speed.execute(2).args[0])},
        "record": lambda: {"prompts": recorded()},
    }


def latents(stage: Stage) -> Any:
    """How far pictures of lent residuals are from those of one's own; who lent, and how much."""
    control = stage.world.pack("nodes.host.control")
    found = {}
    for name, given in ways(stage).items():
        wanted = stage.sample(**given())
        Lender.made = []
        with replaced(control, "RecordedNet", Lender):
            latent = stage.sample(**given())
        found[name] = {
            "apart": float((latent - wanted).abs().max()),
            "lent": [one.lends for one in Lender.made],
            "spoilt": sum(one.spoilt for one in Lender.made),
        }
    return found


def steps_apart(stage: Stage) -> Any:
    """That the stand-in would be seen: the residuals of one step are read at the next."""
    control, prompts = stage.world.pack("nodes.host.control"), stage.applied()
    kind, kept = type(control_of(prompts)), []

    def late(self: Any, call: Any, place: Any) -> Any:
        kept.append(computed(self, call, place))
        return kept[-2] if len(kept) > 1 else kept[-1]

    Lender.made = []
    computed = kind._computed
    with replaced(kind, "_computed", late), replaced(control, "RecordedNet", Lender):
        return {"finite": bool(stage.sample(prompts).isfinite().all())}


def streams(stage: Stage) -> Any:
    """With which UNets a net is played on a stream of its own."""
    control = stage.world.pack("nodes.host.control")

    class Warm(Lender):
        def __init__(self, net: Any, *, lends: bool = False) -> None:
            super().__init__(net, lends=lends)
            self.warm = True

    def no_stream(device: Any) -> Any:
        raise RuntimeError("a stream of its own")

    def played(model: Any = None) -> str:
        with replaced(control, "RecordedNet", Warm), replaced(control, "side_stream", no_stream):
            return sentence(lambda: stage.sample(stage.applied(), model))

    wrapped, part = stage.model.clone(), stage.unet.middle_block
    wrapped.add_wrapper_with_key(
        WrappersMP.APPLY_MODEL,
        "torch.compile",
        lambda executor, *args, **more: executor(*args, **more),
    )
    Warm.made = []
    found = {"plain": played(), "host's node": played(wrapped)}
    with replaced(part, "_compiled_call_impl", part._call_impl):
        found["part"] = played()
    return found


def cases(_: Any) -> dict[str, Callable[[World], Any]]:
    return on_stage(latents, steps_apart, streams, size=(8, 8))
