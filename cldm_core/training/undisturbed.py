"""Runs something in the middle of a training that must go on as if it hadn't been."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def undisturbed(modules: Sequence[nn.Module]) -> Iterator[None]:
    """All modules are in eval mode within; random numbers and each module's mode come back.

    The random numbers are those of Python, NumPy and PyTorch, on the CPU and on every device that
    PyTorch has begun to use.
    """
    modes = {one: one.training for module in modules for one in module.modules()}
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
    try:
        for one in modes:
            one.training = False
        yield
    finally:
        for one, training in modes.items():
            one.training = training
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)
        if mps is not None:
            torch.mps.set_rng_state(mps)
