"""Loss, gradients and three steps of training against the original's (data/README.md)."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from controlnet_pack.cldm_core import ControlledUNet, ControlNet, ControlNetConfig, UNetConfig
from controlnet_pack.cldm_core.diffusion import NoiseSchedule
from controlnet_pack.cldm_core.training import Trainable, make_trainable, training_loss

from .goldens import GOLDENS, relative
from .parity_cases import CONTROL_SEED, TRAINING, UNET_SEED, TrainingCase
from .seeded import sample, seeded_module

# Adam divides a gradient by its own size, so rounding in the smallest ones moves weights: the first
# step is exact to float32, the later ones follow it. Worst seen: 2e-5, 6e-5 and 2e-4.
TOLERANCES = (1e-4, 1e-3, 1e-3)


WAYS = ("lean", "checkpointed", "plain")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", TRAINING, ids=lambda training: training.case.name)
def test_three_steps(training: TrainingCase, way: str) -> None:
    path = GOLDENS / f"{training.case.name}.safetensors"
    golden = load_file(path)
    with safe_open(path, "pt") as file:
        names = json.loads(file.metadata()["parameters"])
    trainable = _trainable(training, way)
    weights = _weights(trainable)
    frozen = [
        (weight, weight.clone())
        for module in (trainable.net, trainable.unet)
        for weight in module.parameters()
        if not weight.requires_grad
    ]
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=training.lr)
    assert names == sorted(weights)
    for step, tolerance in enumerate(TOLERANCES):
        optimizer.zero_grad()
        loss = _loss(training, step, trainable)
        loss.backward()
        gradients = [weights[name].grad for name in names]
        samples = torch.stack([sample(gradient, 16) for gradient in gradients])
        norms = torch.stack([gradient.norm() for gradient in gradients])
        assert relative(loss.detach(), golden["losses"][step]) < tolerance
        assert (norms / golden["grad_l2"][step] - 1).abs().max() < tolerance  # of each tensor
        assert relative(samples, golden["grad_samples"][step]) < tolerance
        optimizer.step()
    after = torch.stack([sample(weights[name], 16) for name in names])
    moved = (after - golden["weight_samples"]).abs()
    assert moved.max() < 2 * training.lr * training.steps
    assert moved.mean() < 1e-3 * training.lr
    assert frozen
    assert all(weight.grad is None and torch.equal(weight, start) for weight, start in frozen)


def _weights(trainable: Trainable) -> dict[str, Tensor]:
    """What trains, by the names of the recorded numbers."""
    unet = {f"unet.{name}": weight for name, weight in trainable.unet.named_parameters()}
    both = dict(trainable.net.named_parameters()) | unet
    return {name: weight for name, weight in both.items() if weight.requires_grad}


def _trainable(training: TrainingCase, way: str) -> Trainable:
    case = training.case
    control_config = ControlNetConfig.from_params(case.control_params)
    trainable = make_trainable(
        "controlnet",
        seeded_module(ControlledUNet, UNetConfig.from_params(case.unet_params), UNET_SEED),
        init=seeded_module(ControlNet, control_config, CONTROL_SEED),
        sd_locked=training.sd_locked,
        only_mid_control=training.only_mid_control,
        checkpointing=way == "checkpointed",
    )
    return trainable.plain() if way == "plain" else trainable


def _loss(training: TrainingCase, step: int, trainable: Trainable) -> Tensor:
    (latents, hint, timesteps, context, _), noise = training.batch(step)
    return training_loss(
        trainable.unet,
        trainable.net,
        latents,
        noise,
        timesteps,
        context,
        hint,
        schedule=NoiseSchedule(),
        prediction=training.parameterization,
        only_mid_control=trainable.only_mid_control,
    )


def test_noise_schedule() -> None:
    golden = load_file(GOLDENS / "schedule.safetensors")
    ours = NoiseSchedule().alphas_cumprod()
    assert relative(ours.float(), golden["alphas_cumprod"]) < 1e-6
    assert relative(ours.sqrt().float(), golden["sqrt_alphas_cumprod"]) < 1e-6
    assert relative((1 - ours).sqrt().float(), golden["sqrt_one_minus_alphas_cumprod"]) < 1e-6
