"""The networks, each written from its paper; attribute names are the public checkpoints' keys.

Only imported by functions, since these files import torch.
"""
