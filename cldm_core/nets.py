"""What every control net of this pack tells about itself, whatever its kind."""

from __future__ import annotations

from typing import Any, Protocol


class ControlNetLike(Protocol):
    """A control net of any kind, or a user's wrapper that shows as much of one.

    What a net doesn't read or give is 0, False or None, so that nobody has to ask for its class.
    """

    @property
    def residual_count(self) -> int:
        """How many residuals it gives; 0 where it patches projections instead."""

    @property
    def pooled(self) -> bool:
        """Whether its residuals are averaged over the picture."""

    @property
    def context_dim(self) -> int | None:
        """How wide the texts are that it reads, None where it reads none."""

    @property
    def hint_channels(self) -> int:
        """How many channels its hints have."""

    def encode_hint(self, hint: Any, /) -> Any:
        """Features of a hint (B, hint_channels, 8h, 8w), or of a union net's hints by type."""

    def __call__(self, x: Any, features: Any, timesteps: Any, /, *args: Any, **options: Any) -> Any:
        """Residuals, or patches of projections, for latents x (B, C, h, w)."""
