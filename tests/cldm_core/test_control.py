"""What makes a ControlNet one: it starts from nothing, learns from step 0, and scales as told."""

import copy

import pytest
import torch

from controlnet_pack.cldm_core import (
    TINY,
    CldmError,
    ControlLDM,
    ControlledUNet,
    ControlNet,
    ControlNetConfig,
    FamilyMismatch,
    Residuals,
    ShapeError,
    add_control,
    guess_mode_scales,
    merge,
    pool,
    weigh,
)

ZERO_KEYS = ("zero_convs.", "middle_block_out.", "input_hint_block.14.")


def inputs(batch: int = 2, height: int = 6, width: int = 8) -> dict[str, torch.Tensor]:
    return {
        "x": torch.randn(batch, 4, height, width),
        "timesteps": torch.linspace(3, 900, batch),
        "context": torch.randn(batch, 5, 128),
    }


@pytest.fixture
def unet() -> ControlledUNet:
    """A UNet whose own zero-initialised layers have weights, as a trained one has."""
    unet = ControlledUNet(TINY)
    for parameter in unet.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    return unet.requires_grad_(False)


@pytest.fixture
def trained(unet: ControlledUNet) -> ControlNet:
    """A net whose zero convolutions have left zero."""
    net = add_control(unet).requires_grad_(False)
    for key, parameter in net.named_parameters():
        if key.startswith(ZERO_KEYS):
            torch.nn.init.normal_(parameter, std=0.05)
    return net


def residuals(net: ControlNet, given: dict[str, torch.Tensor], hint: torch.Tensor) -> Residuals:
    return net(given["x"], net.encode_hint(hint), given["timesteps"], given["context"])


def test_a_fresh_net_changes_nothing_bit_for_bit(unet: ControlledUNet) -> None:
    given, hint = inputs(), torch.rand(2, 3, 48, 64)
    control = residuals(add_control(unet), given, hint)
    assert all(not item.any() for item in (*control.output, *control.middle))
    assert torch.equal(unet(**given, control=control), unet(**given))


def test_the_encoder_is_copied_and_not_shared(unet: ControlledUNet) -> None:
    net = add_control(unet)
    base = unet.state_dict()
    for key, value in net.state_dict().items():
        if key in base:
            assert torch.equal(value, base[key]), key
            assert value.data_ptr() != base[key].data_ptr(), key
        elif key.startswith(ZERO_KEYS):
            assert not value.any(), key
        else:
            assert key.startswith("input_hint_block."), key


def test_a_trained_net_changes_the_prediction(unet: ControlledUNet, trained: ControlNet) -> None:
    given, hint = inputs(), torch.rand(2, 3, 48, 64)
    control = residuals(trained, given, hint)
    plain = unet(**given)
    assert not torch.allclose(unet(**given, control=control), plain, atol=1e-3)
    middle = unet(**given, control=control, only_mid_control=True)
    assert torch.equal(middle, unet(**given, control=Residuals(middle=control.middle)))
    assert not torch.allclose(middle, plain, atol=1e-4)


def test_zero_convolutions_learn_at_step_0_and_the_copied_encoder_at_step_1(
    unet: ControlledUNet,
) -> None:
    """y = w x + b: with w = 0 the gradient of w is x times what comes back, and x's is 0."""
    net, given, hint = add_control(unet), inputs(), torch.rand(2, 3, 48, 64)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)

    def touched() -> set[str]:
        optimizer.zero_grad()
        control = net(given["x"], None, given["timesteps"], given["context"], hint=hint)
        unet(**given, control=control).square().mean().backward()
        return {k for k, p in net.named_parameters() if p.grad is not None and p.grad.any()}

    first = touched()
    weights = {k for k, _ in net.named_parameters() if k.startswith(("zero_convs.", "middle_b"))}
    outer = {k for k in weights if k.startswith(("zero_convs.", "middle_block_out."))}
    assert first == outer
    optimizer.step()
    second = touched()
    # The hint encoder's last layer is a zero convolution too, so its first layers wait a step more.
    waiting = {
        k
        for k, _ in net.named_parameters()
        if k.startswith("input_hint_block.") and not k.startswith("input_hint_block.14.")
    }
    assert second == {k for k, _ in net.named_parameters()} - waiting
    assert all(parameter.grad is None for parameter in unet.parameters())


def test_strength_is_linear_and_zero_is_none(trained: ControlNet, unet: ControlledUNet) -> None:
    given = inputs()
    control = residuals(trained, given, torch.rand(1, 3, 48, 64))
    before = [item.clone() for item in control.output]
    assert torch.equal(unet(**given, control=weigh(control, 0.0)), unet(**given))
    assert weigh(control, 1.0) is control
    for item, half in zip(control.output, weigh(control, 0.5).output, strict=True):
        assert torch.equal(half, item * 0.5)
    scales = guess_mode_scales(2.0, len(control.output) + 1)
    weighed = weigh(control, scales)
    assert torch.equal(weighed.middle[0], control.middle[0] * 2.0)
    assert torch.equal(weighed.output[0], control.output[0] * (2.0 * 0.825 ** len(control.output)))
    assert all(map(torch.equal, control.output, before)), "an input was changed in place"
    with pytest.raises(ShapeError, match="3 scales were given for 7 residuals"):
        weigh(control, [1.0, 1.0, 1.0])


def test_merging_does_not_depend_on_the_order(trained: ControlNet) -> None:
    given = inputs()
    a = residuals(trained, given, torch.rand(1, 3, 48, 64))
    b = Residuals(middle=(torch.randn(2, 128, 2, 2),), input=(None, torch.randn(2, 64, 6, 8)))
    one, other = merge(a, b), merge(b, a)
    assert torch.equal(one.middle[0], other.middle[0])
    assert torch.equal(one.middle[0], a.middle[0] + b.middle[0])
    assert one.output == a.output
    assert one.input[0] is None
    assert one.input[1] is b.input[1]


def test_pooled_residuals_are_means(unet: ControlledUNet, trained: ControlNet) -> None:
    given, hint = inputs(), torch.rand(1, 3, 48, 64)
    pooled = ControlNet(ControlNetConfig(TINY, global_average_pooling=True))
    pooled.load_state_dict(trained.state_dict())
    expected = pool(residuals(trained, given, hint))
    found = residuals(pooled, given, hint)
    assert all(map(torch.equal, found.output, expected.output))
    assert found.output[0].shape == (2, 64, 1, 1)
    assert unet(**given, control=found).shape == given["x"].shape


def test_features_of_one_hint_serve_a_batch(trained: ControlNet) -> None:
    given, hint = inputs(), torch.rand(1, 3, 48, 64)
    one = residuals(trained, given, hint)
    each = residuals(trained, given, hint.expand(2, -1, -1, -1))
    for a, b in zip(one.output, each.output, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("size", [(5, 7), (6, 8), (9, 12)])
def test_odd_latents_keep_their_size(
    unet: ControlledUNet, trained: ControlNet, size: tuple[int, int]
) -> None:
    given = inputs(1, *size)
    control = residuals(trained, given, torch.rand(1, 3, 8 * size[0], 8 * size[1]))
    assert unet(**given, control=control).shape == given["x"].shape


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_white_hint_is_no_overflow_in_any_type(trained: ControlNet, dtype: torch.dtype) -> None:
    """The sum of a white 256 px hint is beyond fp16."""
    net = copy.deepcopy(trained).to(dtype)
    features = net.encode_hint(torch.ones(1, 3, 256, 256, dtype=dtype))
    assert torch.isfinite(features).all()
    # A hint of another floating type is cast.
    assert net.encode_hint(torch.ones(1, 3, 64, 64)).dtype == dtype


def test_masked_pixels_of_inpaint_hints_are_minus_one(trained: ControlNet) -> None:
    hint = torch.rand(1, 3, 64, 64)
    hint[..., :20] = -1
    assert trained.encode_hint(hint).shape == (1, 64, 8, 8)


def test_nets_can_be_copied_whole(unet: ControlledUNet, trained: ControlNet) -> None:
    given, hint = inputs(), torch.rand(1, 3, 48, 64)
    control = residuals(trained, given, hint)
    copied = residuals(copy.deepcopy(trained), given, hint)
    assert all(map(torch.equal, control.output, copied.output))
    assert torch.equal(copy.deepcopy(unet)(**given), unet(**given))


def test_control_ldm_applies_scales_and_leaves_control_out_without_a_hint(
    unet: ControlledUNet, trained: ControlNet
) -> None:
    ldm, given, hint = ControlLDM(unet, trained), inputs(), torch.rand(2, 3, 48, 64)
    x, t = given["x"], given["timesteps"]
    text = {"c_crossattn": [given["context"][:, :2], given["context"][:, 2:]]}
    plain = ldm.apply_model(x, t, {**text, "c_concat": None})
    assert torch.equal(plain, unet(**given))
    steered = ldm.apply_model(x, t, {**text, "c_concat": [hint]})
    control = residuals(trained, given, hint)
    assert torch.equal(steered, unet(**given, control=control))
    with pytest.raises(CldmError, match="cond has no text"):
        ldm.apply_model(x, t, {"c_concat": [hint]})
    ldm.set_strength(0.7, guess_mode=True)
    assert ldm.control_scales[-1] == pytest.approx(0.7)
    assert ldm.control_scales[0] == pytest.approx(0.7 * 0.825**6)
    guessed = ldm.apply_model(x, t, {**text, "c_concat": [hint]})
    assert torch.equal(guessed, unet(**given, control=weigh(control, ldm.control_scales)))
    assert {key.split(".")[0] for key in ldm.state_dict()} == {"model", "control_model"}


def test_wrong_inputs_are_refused_with_a_sentence(
    unet: ControlledUNet, trained: ControlNet
) -> None:
    given, hint = inputs(), torch.rand(1, 3, 48, 64)
    with pytest.raises(ShapeError, match=r"hint has shape \(1, 4, 48, 64\), this net takes"):
        trained.encode_hint(torch.rand(1, 4, 48, 64))
    with pytest.raises(ShapeError, match="50x64: both sides must be multiples of 8"):
        trained.encode_hint(torch.rand(1, 3, 50, 64))
    with pytest.raises(ShapeError, match=r"hint is torch.uint8, expected floating-point"):
        trained.encode_hint((hint * 255).byte())
    with pytest.raises(ShapeError, match=r"go from 0 to 255, expected \[0, 1\]: divide"):
        trained.encode_hint((hint > 0.5).float() * 255)
    with pytest.raises(ShapeError, match=r"timesteps have shape \(3,\), expected \(2,\)"):
        residuals(trained, {**given, "timesteps": torch.zeros(3)}, hint)
    with pytest.raises(ShapeError, match=r"text embeddings have shape \(1, 5, 128\)"):
        unet(given["x"], given["timesteps"], given["context"][:1])
    with pytest.raises(ShapeError, match="give what encode_hint returned"):
        trained(given["x"], hint, given["timesteps"], given["context"])
    with pytest.raises(ShapeError, match="NaN or infinite"):
        trained.encode_hint(hint.clone().index_fill_(0, torch.tensor(0), float("nan")))
    with pytest.raises(ShapeError, match="hint is 64x64 and the latents need 48x64"):
        residuals(trained, given, torch.rand(1, 3, 64, 64))
    with pytest.raises(ShapeError, match="3 hints were given for a batch of 2"):
        residuals(trained, given, torch.rand(3, 3, 48, 64))
    with pytest.raises(ShapeError, match="needs a hint"):
        trained(given["x"], None, given["timesteps"], given["context"])
    with pytest.raises(FamilyMismatch, match="reads text embeddings 128 wide, but the text"):
        residuals(trained, {**given, "context": torch.randn(2, 5, 768)}, hint)
    with pytest.raises(ShapeError, match=r"latents have shape \(2, 3, 6, 8\)"):
        unet(torch.randn(2, 3, 6, 8), given["timesteps"], given["context"])
    other = Residuals(output=tuple(torch.zeros(2, 64, 6, 8) for _ in range(12)))
    with pytest.raises(FamilyMismatch, match="12 residuals for skip connections"):
        unet(**given, control=other)
    small = residuals(trained, inputs(2, 4, 4), torch.rand(1, 3, 32, 32))
    with pytest.raises(ShapeError, match="can't be added to features of shape"):
        unet(**given, control=small)
