"""Training of control nets: data, loss, loop, evaluation.

`training_loss` is the loss that every way of training uses; `make_trainable` says what is trained.
"""
