"""The training loss: what it computes, what it leaves alone, and what it refuses."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

from controlnet_pack.cldm_core import CldmError, NoiseSchedule, ShapeError, add_control
from controlnet_pack.cldm_core.training import min_snr, training_loss

from .training_cases import SMALL, gradients, net_of, step_of, unet_of

SCHEDULE = NoiseSchedule()


@pytest.fixture(scope="module")
def unet():
    return unet_of()


@pytest.fixture
def net():
    return net_of().requires_grad_(True)


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_is_the_mean_squared_error_of_the_steered_prediction(unet, net, prediction):
    step = step_of()
    x = SCHEDULE.add_noise(step.latents, step.noise, step.timesteps)
    target = SCHEDULE.target(step.latents, step.noise, step.timesteps, prediction)
    control = net(x, None, step.timesteps, step.context, hint=step.hint)
    predicted = unet(x, step.timesteps, step.context, control=control)
    loss = step.loss(unet, net, prediction=prediction)
    assert loss.shape == ()
    torch.testing.assert_close(loss, mse_loss(predicted, target), rtol=1e-6, atol=0)


def test_none_gives_one_number_for_each_picture(unet, net):
    step = step_of()
    each = step.loss(unet, net, reduction="none")
    assert each.shape == (2,)
    assert each[0] != each[1]
    torch.testing.assert_close(each.mean(), step.loss(unet, net))


def test_weights_multiply_each_picture(unet, net):
    step, weights = step_of(), torch.tensor([0.0, 3.0])
    each = step.loss(unet, net, reduction="none")
    weighed = step.loss(unet, net, weights=weights, reduction="none")
    torch.testing.assert_close(weighed, each * weights)
    torch.testing.assert_close(step.loss(unet, net, weights=weights), 1.5 * each[1])


def test_only_the_net_gets_gradients(unet, net):
    step_of().loss(unet, net).backward()
    assert all(weight.grad is not None for weight in net.parameters())
    assert all(weight.grad is None for weight in unet.parameters())


def test_only_mid_control_trains_no_zero_convolution_of_a_skip(unet, net):
    step_of().loss(unet, net, only_mid_control=True).backward()
    without = {n for n, weight in net.named_parameters() if weight.grad is None}
    assert without == {n for n, _ in net.named_parameters() if n.startswith("zero_convs.")}


def test_a_new_net_trains_its_zero_convolutions_first(unet):
    net = add_control(unet).requires_grad_(True)
    step_of().loss(unet, net).backward()
    moved = {n for n, gradient in gradients(net).items() if gradient.any()}
    assert moved == {
        n for n, _ in net.named_parameters() if n.startswith(("zero", "middle_bl"))
    } - {n for n, _ in net.named_parameters() if n.startswith("middle_block.")}


def test_the_encoder_leaves_no_graph(unet, net):
    wanted = []
    watched = [*unet.input_blocks, unet.middle_block, *unet.output_blocks]
    hooks = [m.register_forward_hook(lambda *a: wanted.append(a[2].requires_grad)) for m in watched]
    step_of().loss(unet, net)
    for hook in hooks:
        hook.remove()
    encoder = len(unet.input_blocks) + 1
    assert wanted == [False] * encoder + [True] * len(unet.output_blocks)


def test_goes_through_the_forward_of_a_wrapped_net_once(unet, net):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.calls = net, 0

        def forward(self, *args, **kwargs):
            self.calls += 1
            return self.module(*args, **kwargs)

    wrapped, step = Wrapped(), step_of()
    assert torch.equal(step.loss(unet, wrapped), step.loss(unet, net))
    assert wrapped.calls == 1


def test_loss_is_fp32_for_nets_in_half_precision():
    unet, net = unet_of().bfloat16(), net_of().bfloat16()
    loss = step_of().loss(unet, net)
    assert loss.dtype == torch.float32
    full = step_of().loss(unet_of(), net_of())
    torch.testing.assert_close(loss, full, rtol=0.05, atol=0)


def test_a_net_in_fp32_steers_a_unet_in_half_precision(unet, net):
    half = unet_of().bfloat16()
    loss = step_of().loss(half, net)
    loss.backward()
    torch.testing.assert_close(loss.detach(), step_of().loss(unet, net).detach(), rtol=0.05, atol=0)
    assert all(weight.grad.dtype == torch.float32 for weight in net.parameters())


def test_noise_is_added_in_fp32_to_latents_in_half_precision(unet, net):
    step = step_of()
    rounded = replace(
        step, latents=step.latents.bfloat16().float(), noise=step.noise.bfloat16().float()
    )
    half = replace(step, latents=step.latents.bfloat16(), noise=step.noise.bfloat16())
    assert torch.equal(half.loss(unet, net), rounded.loss(unet, net))


def test_min_snr_of_eps_is_one_where_there_is_much_noise():
    weights = min_snr(SCHEDULE, torch.tensor([999, 0]), gamma=5.0)
    share = SCHEDULE.alphas_cumprod()[0]
    assert weights[0] == 1
    torch.testing.assert_close(weights[1].double(), 5 * (1 - share) / share)
    assert weights.dtype == torch.float32


def test_min_snr_of_v_divides_by_one_more():
    share = SCHEDULE.alphas_cumprod()[[100, 900]]
    ratio = share / (1 - share)
    expected = torch.minimum(ratio, torch.tensor(5.0)) / (ratio + 1)
    found = min_snr(SCHEDULE, torch.tensor([100, 900]), 5.0, "v")
    torch.testing.assert_close(found, expected.float())


WRONG = {
    "noise": ({"noise": torch.zeros(2, 4, 8, 9)}, r"noise has shape \(2, 4, 8, 9\)"),
    "latents": ({"latents": torch.zeros(4, 8, 8)}, r"latents have shape \(4, 8, 8\)"),
    "timesteps": ({"timesteps": torch.zeros(3, dtype=torch.long)}, r"timesteps have shape \(3,\)"),
    "fractions": ({"timesteps": torch.tensor([0.5, 1.5])}, "expected whole numbers"),
    "late": ({"timesteps": torch.tensor([1000, 0])}, "go from 0 to 1000, expected 0 to 999"),
    "hint": ({"hint": torch.zeros(2, 3, 32, 32)}, "hint is 32x32 and the latents need 64x64"),
    "hints": ({"hint": torch.zeros(3, 3, 64, 64)}, "3 hints were given for a batch of 2"),
    "range": ({"hint": torch.full((2, 3, 64, 64), 255.0)}, "divide pictures"),
}


@pytest.mark.parametrize("name", WRONG)
def test_says_what_does_not_fit(unet, net, name):
    change, message = WRONG[name]
    with pytest.raises(ShapeError, match=message):
        replace(step_of(), **change).loss(unet, net)


OPTIONS = {
    "reduction": ({"reduction": "sum"}, CldmError, "reduction is 'sum'"),
    "prediction": ({"prediction": "x0"}, CldmError, "prediction type is 'x0'"),
    "weights": ({"weights": torch.ones(3)}, ShapeError, r"weights have shape \(3,\)"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_says_which_option_is_wrong(unet, net, name):
    options, error, message = OPTIONS[name]
    with pytest.raises(error, match=message):
        step_of().loss(unet, net, **options)


@pytest.mark.parametrize(("gamma", "prediction"), [(0.0, "eps"), (-1.0, "v"), (5.0, "x0")])
def test_min_snr_refuses_what_has_no_meaning(gamma, prediction):
    with pytest.raises(CldmError):
        min_snr(SCHEDULE, torch.tensor([1]), gamma, prediction)


def test_refuses_a_unet_that_gives_other_channels_than_it_takes(net):
    inpainting = unet_of(replace(SMALL, out_channels=8))
    with pytest.raises(ShapeError, match="as many channels as they take"):
        step_of().loss(inpainting, net)


def test_refuses_inference_mode(unet, net):
    with torch.inference_mode(), pytest.raises(CldmError, match="inference_mode"):
        step_of().loss(unet, net)


def test_refuses_what_gives_neither_residuals_nor_patches(unet):
    class Other(nn.Module):
        def forward(self, *args, **kwargs):
            return torch.zeros(1)

    with pytest.raises(CldmError, match="expected residuals or patches"):
        step_of().loss(unet, Other())


def test_is_exported():
    from controlnet_pack.cldm_core import training

    assert training.training_loss is training_loss
