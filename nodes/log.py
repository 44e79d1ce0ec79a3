"""The pack's logger: the console has its lines, and the editor its warnings and errors."""

from __future__ import annotations

import logging

NAME = "ComfyUI-CLDM"


def _logger() -> logging.Logger:
    try:
        from seconohe.logger import initialize_logger
    except ImportError:  # the pack was copied into its place, without what it requires
        return logging.getLogger(NAME)
    made: logging.Logger = initialize_logger(NAME)
    return made


log = _logger()
