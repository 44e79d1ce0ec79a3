"""Lean layers: values to the bit, gradients to rounding, and little kept."""

import gc
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck
from torch.nn import functional as F

from controlnet_pack.cldm_core.projections import patched
from controlnet_pack.cldm_core.training import lean
from controlnet_pack.cldm_core.training.frozen import convolve, gate, project

from .parity_cases import HOST, ORIGINAL, UNCOMMON
from .training_cases import SMALL, config_of, gradients, kept, net_of, step_of, unet_of

NAMES = (
    "narrow_heads",
    "sdxl_mid",
    "uneven_latent",
    "depth_2",
    "scale_shift_norm",
    "resblock_updown",
    "pooled_resample",
    "no_self_attention",
)
CASES = [case for case in ORIGINAL + UNCOMMON + HOST if case.name in NAMES]


def layers(channels=32, out=64, groups=32, dtype=torch.float64):
    torch.manual_seed(0)
    norm = nn.GroupNorm(groups, channels, eps=1e-6).to(dtype)
    conv = nn.Conv2d(channels, out, 3, padding=1).to(dtype)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    return norm, conv


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
@pytest.mark.parametrize("silu", [False, True])
@pytest.mark.parametrize("normed", [False, True])
def test_convolution_has_the_gradients_of_finite_differences(trained, silu, normed):
    norm, conv = layers(4, 3, 2)
    norm, x = (norm if normed else None), torch.randn(2, 4, 3, 5, dtype=torch.float64)
    weights = [*conv.parameters(), *(norm.parameters() if normed else ())]
    for weight in weights:
        weight.requires_grad_(trained)
    inputs = [x.requires_grad_(True), *(weights if trained else [])]
    assert gradcheck(lambda *_: convolve(x, conv, norm, silu=silu), inputs)


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_projections_have_the_gradients_of_finite_differences(trained):
    norm = nn.LayerNorm(4).double()
    linear = [nn.Linear(4, 3).double(), nn.Linear(4, 5, bias=False).double()]
    weights = [w for layer in (norm, *linear) for w in layer.parameters()]
    for weight in weights:
        weight.requires_grad_(trained)
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    assert gradcheck(lambda *_: project(x, norm, linear), [x, *(weights if trained else [])])


@pytest.mark.parametrize("trained", [False, True], ids=["frozen", "trained"])
def test_gates_have_the_gradients_of_finite_differences(trained):
    linear = nn.Linear(4, 3).double().requires_grad_(trained)
    x = torch.randn(2, 3, 8, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(linear.parameters() if trained else [])]
    assert gradcheck(lambda *_: gate(x, linear), inputs)


def test_a_frozen_convolution_keeps_nothing():
    _, conv = layers(dtype=torch.float32)
    conv.requires_grad_(False)
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    with kept(conv) as found:
        out = convolve(x, conv)
    out.sum().backward()
    assert found.bytes == 0
    assert x.grad is not None


def test_norm_silu_and_convolution_keep_the_input_alone():
    norm, conv = layers(dtype=torch.float32)
    x = torch.randn(1, 32, 8, 8, requires_grad=True)
    with kept(norm, conv) as found:
        out = convolve(x * 1, conv, norm, silu=True)
    out.sum().backward()
    statistics = 2 * 4 * 32
    assert found.bytes == 4 * x.numel() + statistics


@pytest.mark.parametrize("stride", [1, 2])
def test_layouts_of_channels_last_stay(stride):
    norm, conv = layers(dtype=torch.float32)
    conv.stride = (stride, stride)
    plain = torch.randn(2, 32, 8, 8)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        conv.requires_grad_(False)
        x = plain.to(memory_format=layout).requires_grad_(True)
        reference = F.conv2d(F.silu(norm(x)), conv.weight, conv.bias, stride, 1)
        out = convolve(x, conv, norm, silu=True)
        assert torch.equal(out, reference)
        assert out.stride() == reference.stride()
        (expected,) = torch.autograd.grad(reference.square().sum(), x)
        (found,) = torch.autograd.grad(out.square().sum(), x)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        results.append(found)
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def both(config, step, *, checkpointing=False, unlocked=False):
    """Loss and gradients with plain layers, then with lean ones, in fp64."""
    found = []
    for view in (lambda m: m, lambda m: lean(m, checkpointing=checkpointing)):
        unet, net = unet_of(config).double(), net_of(config).double().requires_grad_(True)
        if unlocked:
            unet.output_blocks.requires_grad_(True)
            unet.out.requires_grad_(True)
        loss = step.to(torch.float64).loss(view(unet), view(net))
        loss.backward()
        found.append((loss.detach(), gradients(net), gradients(unet)))
    return found


def assert_alike(found):
    (loss, net, unet), (lean_loss, lean_net, lean_unet) = found
    assert torch.equal(loss, lean_loss)
    for plain, leaned in ((net, lean_net), (unet, lean_unet)):
        assert plain.keys() == leaned.keys()
        for name, gradient in plain.items():
            bound = 1e-9 * max(gradient.abs().max().item(), 1e-6)
            torch.testing.assert_close(leaned[name], gradient, rtol=1e-9, atol=bound, msg=name)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_nets_of_every_kind_have_plain_values_and_gradients(case):
    config = config_of(case)
    assert_alike(both(config, step_of(config, batch=1, size=case.size)))


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_an_unlocked_decoder_has_plain_gradients(checkpointing):
    found = both(SMALL, step_of(), checkpointing=checkpointing, unlocked=True)
    assert found[0][2]
    assert_alike(found)


def test_checkpointed_blocks_have_plain_gradients():
    assert_alike(both(SMALL, step_of(), checkpointing=True))


def test_values_in_fp32_are_equal_to_the_bit():
    step, unet, net = step_of(), unet_of(), net_of()
    assert torch.equal(step.loss(lean(unet), lean(net)), step.loss(unet, net))


def test_autocast_has_the_same_values_and_gradients_as_near_to_exact_ones():
    step, losses, found = step_of(), [], []
    for view, half in ((lambda m: m, False), (lambda m: m, True), (lean, True)):
        unet, net = unet_of(), net_of().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = step.loss(view(unet), view(net))
        loss.backward()
        losses.append(loss.detach())
        found.append(torch.cat([g.flatten() for g in gradients(net).values()]))
    assert torch.equal(losses[1], losses[2])
    plain, leaned = ((one - found[0]).norm() for one in found[1:])
    assert leaned < 1.05 * plain
    assert plain < 0.1 * found[0].norm()


def test_half_precision_has_the_same_values():
    step, unet, net = step_of(), unet_of().bfloat16(), net_of().bfloat16()
    assert torch.equal(step.loss(lean(unet), lean(net)), step.loss(unet, net))


def test_dropout_at_work_draws_the_same_numbers_the_second_time():
    config = replace(SMALL, dropout=0.3)
    found = []
    for checkpointing in (False, True):
        unet, net = unet_of(config), net_of(config).requires_grad_(True).train()
        torch.manual_seed(5)
        loss = step_of(config).loss(lean(unet), lean(net, checkpointing=checkpointing))
        loss.backward()
        found.append((loss.detach(), gradients(net)))
    assert torch.equal(found[0][0], found[1][0])
    for name, gradient in found[0][1].items():
        torch.testing.assert_close(found[1][1][name], gradient)


def test_patches_are_read_where_blocks_are_checkpointed():
    path = "input_blocks.1.1.transformer_blocks.0.attn1.to_q"
    found = []
    for checkpointing in (False, True):
        unet = lean(unet_of(), checkpointing=checkpointing)
        shift = torch.full((32,), 0.5, requires_grad=True)
        step = step_of()
        with patched(unet, [{path: lambda x, shift=shift: x + shift}]):
            out = unet(step.latents, step.timesteps, step.context)
        out.square().mean().backward()
        found.append(shift.grad)
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0])


def saved(step, unet, net):
    with kept(unet, net) as found:
        loss = step.loss(unet, net)
    loss.backward()
    net.zero_grad()
    return found.bytes


def test_lean_layers_keep_less_than_two_thirds_and_checkpointing_less_than_a_third():
    step, unet, net = step_of(size=(16, 16)), unet_of(), net_of().requires_grad_(True)
    plain = saved(step, unet, net)
    assert saved(step, lean(unet), lean(net)) < 0.67 * plain
    checkpointed = saved(step, lean(unet, checkpointing=True), lean(net, checkpointing=True))
    assert checkpointed < 0.33 * plain


def test_a_forward_without_its_backward_leaves_nothing_behind():
    step, unet, net = step_of(), lean(unet_of()), lean(net_of().requires_grad_(True))

    def alive():
        gc.collect()
        return sum(type(item) is torch.Tensor for item in gc.get_objects())

    before = alive()
    step.loss(unet, net)
    assert alive() == before


def test_a_view_shares_weights_and_leaves_the_net_as_it_is():
    net = net_of()
    classes = [type(module) for module in net.modules()]
    view = lean(net, checkpointing=True)
    assert [type(module) for module in net.modules()] == classes
    assert view.state_dict().keys() == net.state_dict().keys()
    assert all(a is b for a, b in zip(view.parameters(), net.parameters(), strict=True))
    net.double()
    assert next(view.parameters()).dtype == torch.float64


def test_nothing_is_kept_without_gradients():
    step, unet = step_of(), lean(unet_of(), checkpointing=True)
    with kept(unet) as found:
        unet(step.latents, step.timesteps, step.context)
    assert found.bytes == 0


def test_ddp_gives_the_gradients_of_the_net_itself(tmp_path):
    from torch import distributed
    from torch.nn.parallel import DistributedDataParallel

    unet, net, step = unet_of(), net_of().requires_grad_(True), step_of()
    step.loss(unet, net).backward()
    expected = gradients(net)
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        for checkpointing in (False, True):
            wrapped = DistributedDataParallel(lean(net, checkpointing=checkpointing))
            step.loss(lean(unet, checkpointing=checkpointing), wrapped).backward()
            for name, gradient in gradients(net).items():
                torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    finally:
        distributed.destroy_process_group()
