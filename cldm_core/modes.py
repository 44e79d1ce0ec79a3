"""Control modes: how strongly each block of the UNet is steered, by the traditions of the field.

`balanced` is what nets are trained for. In `prompt` ("My prompt is more important") and `control`
("ControlNet is more important") the residuals of the finer blocks are weakened, in both by the same
numbers; they differ in side. `prompt` acts on both sides of the guidance, `control` on the
conditional one alone.
"""

from __future__ import annotations

from .errors import CldmError
from .lllite import ControlLLLite
from .nets import ControlNetLike
from .residuals import guess_mode_scales
from .t2i_adapter import T2IAdapter

MODES = ("balanced", "prompt", "control")
FAMILIES = ("sd15", "sd21", "sdxl", "t2i", "t2i_xl")
CURVES = ("original", "a1111", "diffusers")
AUTO = "auto"
"""For `weights_for`: the curve that is used with nets of the kind."""

ADAPTER_WEIGHTS = (0.25, 0.62, 0.825, 1.0)
_COUNTS = {"sd15": 13, "sd21": 13, "sdxl": 10, "t2i": 4, "t2i_xl": 4}
_CURVES = {
    "sd15": CURVES,
    "sd21": CURVES,
    "sdxl": ("a1111", "diffusers"),
    "t2i": ("a1111",),
    "t2i_xl": ("a1111",),
}
_SD21_TEXT = 1024


def block_weights(mode: str, family: str, curve: str) -> tuple[float, ...]:
    """The factor of each residual: z0 .. zn-1 and the middle, or an adapter's in injection order.

    13 numbers for sd15 and sd21, 10 for sdxl, 4 for t2i and t2i_xl. `balanced` is all ones, with
    any curve. The curves of the other modes:

    - original: 0.825**(12 - i), the guess mode of lllyasviel/ControlNet (gradio_canny2image.py);
      for SD 1.5 and 2.1.
    - a1111: that of Mikubill/sd-webui-controlnet (scripts/hook.py). The same for SD 1.5 and 2.1;
      for SDXL the first ten numbers of that list, so the middle has 0.825**3; for T2I-Adapters, of
      SDXL too, 0.25, 0.62, 0.825 and 1.
    - diffusers: 10**(i / n - 1) with the middle as residual n, the guess mode of diffusers
      (models/controlnets/controlnet.py); for ControlNets.

    Raises CldmError for an unknown name, and for a curve that the family doesn't have.
    """
    _check("mode", mode, MODES)
    _check("family", family, FAMILIES)
    _check("curve", curve, CURVES)
    count = _COUNTS[family]
    if mode == "balanced":
        return (1.0,) * count
    if curve not in _CURVES[family]:
        raise CldmError(
            f"Nobody defines the curve {curve!r} for the family {family}: choose one of "
            f"{', '.join(_CURVES[family])}."
        )
    if curve == "diffusers":
        return _ramp(count)
    if count == len(ADAPTER_WEIGHTS):
        return ADAPTER_WEIGHTS
    return guess_mode_scales(1.0, _COUNTS["sd15"])[:count]


def weights_for(net: ControlNetLike, mode: str, curve: str = AUTO) -> tuple[float, ...]:
    """The factor of each of a net's residuals, in the order of `weigh`.

    `auto` takes the original's curve for ControlNets of SD 1.5's and 2.1's depth, and a1111's for
    SDXL and adapters. A net of another depth (a distilled UNet's, a small one for tests) has no
    tradition: it gets the original's formula over its own n residuals, 0.825**(n - 1 - i), for
    `auto` and `original`, diffusers' ramp from 0.1 to 1 for `diffusers`, and CldmError for `a1111`.
    A ControlNet-LLLite adds no residuals: `balanced` gives (), another mode CldmError. Raises
    CldmError as `block_weights` does, and where a wrapper doesn't show how many residuals its net
    gives.
    """
    _check("mode", mode, MODES)
    _check("curve", curve, (AUTO, *CURVES))
    if isinstance(net, ControlLLLite):
        if mode != "balanced":
            raise CldmError(
                f"The mode {mode!r} weakens some of a net's residuals, and a ControlNet-LLLite has "
                f"none: choose balanced, and lower the strength instead."
            )
        return ()
    family = family_of(net)
    if family is not None:
        return block_weights(mode, family, _CURVES[family][0] if curve == AUTO else curve)
    count = _count(net)
    if count is None:
        raise CldmError(
            f"Nothing tells how many residuals a {type(net).__name__} gives: give a net of this "
            f"pack, or numbers for its blocks."
        )
    return _of_other_depth(mode, curve, count)


def family_of(net: ControlNetLike) -> str | None:
    """The name in FAMILIES of a net's weights, None for LLLites and nets of another depth.

    It tells by the count of residuals and, between SD 1.5 and 2.1, the width of the text.
    """
    count = _count(net)
    if isinstance(net, T2IAdapter):
        name = "t2i_xl" if net.config.kind == "xl" else "t2i"
        return name if count == _COUNTS[name] else None
    if count == _COUNTS["sd15"]:
        width = getattr(net, "context_dim", None)
        return "sd21" if width == _SD21_TEXT else "sd15"
    return "sdxl" if count == _COUNTS["sdxl"] else None


def _count(net: ControlNetLike) -> int | None:
    """How many residuals a net gives, None where a wrapper shows neither that nor its layers."""
    if hasattr(net, "zero_convs"):
        return len(net.zero_convs) + 1
    return getattr(net, "residual_count", None)


def _of_other_depth(mode: str, curve: str, count: int) -> tuple[float, ...]:
    if mode == "balanced":
        return (1.0,) * count
    if curve == "a1111":
        raise CldmError(
            f"Nobody defines the curve 'a1111' for a net of {count} residuals: choose original or "
            f"diffusers."
        )
    return _ramp(count) if curve == "diffusers" else guess_mode_scales(1.0, count)


def _ramp(count: int) -> tuple[float, ...]:
    """`count` numbers from 0.1 to 1 in equal ratios."""
    return tuple(10 ** (index / max(count - 1, 1) - 1) for index in range(count))


def _check(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise CldmError(f"There is no {what} {name!r}: choose one of {', '.join(known)}.")
