"""Union ControlNets: their configuration from keys and shapes."""

from __future__ import annotations

from ..errors import CheckpointMismatch, CldmError
from ..union import FLAG_CHANNELS, UnionConfig
from .detect import controlnet_config, shape_of
from .read import StateDict

TASKS = "task_embedding"
FLAGS = "control_add_embedding.linear_1.weight"


def union_config(state: StateDict) -> UnionConfig:
    """The configuration of a union ControlNet without a key prefix.

    The encoder has cldm keys and the rest the author's. Raises CheckpointMismatch where the
    keys don't describe such a net.
    """
    types, width = shape_of(state, TASKS, 2)
    flags = shape_of(state, FLAGS, 2)[1]
    if flags != FLAG_CHANNELS * types:
        raise CheckpointMismatch(
            f"{TASKS} has {types} control types, but {FLAGS} reads {flags} numbers instead of "
            f"{FLAG_CHANNELS} for each: the file is damaged or of another kind of net."
        )
    try:
        config = UnionConfig(controlnet_config(state), types)
    except CheckpointMismatch:
        raise
    except CldmError as error:
        raise CheckpointMismatch(
            f"These are not the weights of a union ControlNet: {error}"
        ) from error
    if width != config.controlnet.unet.model_channels:
        raise CheckpointMismatch(
            f"{TASKS} is {width} wide and the encoder {config.controlnet.unet.model_channels}, "
            "expected the same: the file is damaged or of another kind of net."
        )
    return config
