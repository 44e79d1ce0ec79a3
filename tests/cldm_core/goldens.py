"""Numbers recorded from the reference implementations (data/README.md), and how far others are."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from controlnet_pack.cldm_core import Residuals

from .seeded import sample, stats

GOLDENS = Path(__file__).parent / "data" / "parity"

# The largest error accepted, relative to the largest value of the recorded tensor: float32's
# rounding. The worst seen is 5e-6; the original and ComfyUI differ as much from each other.
TOLERANCE = 2e-5


def named(features: Tensor, residuals: Residuals) -> dict[str, Tensor]:
    assert residuals.input == () or set(residuals.input) == {None}
    outputs = {f"output.{i}": value for i, value in enumerate(residuals.output)}
    return {"features": features, **outputs, "middle.0": residuals.middle[0]}


def errors(got: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> dict[str, float]:
    """The error of each result, relative to the largest recorded value."""
    found = {}
    for name, value in got.items():
        if name in golden:
            found[name] = relative(value, golden[name])
        else:
            samples = golden[f"{name}.samples"]
            found[f"{name}.samples"] = relative(sample(value, len(samples)), samples)
            found[f"{name}.stats"] = relative(stats(value), golden[f"{name}.stats"])
    return found


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()
