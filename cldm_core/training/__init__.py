"""Training of control nets: data, loss, loop, evaluation.

`training_loss` is the loss that every way of training uses; `make_trainable` says what is trained.
"""

from .lean_layers import lean
from .loss import min_snr, training_loss
from .trainables import Trainable, lllite_for, make_trainable

__all__ = ["Trainable", "lean", "lllite_for", "make_trainable", "min_snr", "training_loss"]
