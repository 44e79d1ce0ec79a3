"""The Control Inspector's pictures of a record: heat maps by block and step, and a plot."""

from __future__ import annotations

from .sheets_heat import heat_sheet
from .sheets_plot import strength_plot

__all__ = ["heat_sheet", "strength_plot"]
