"""ControlNet-LLLite: kohya's numbers, hints and latents of every size, and what is refused."""

import copy
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from controlnet_pack.cldm_core.config import UNetConfig
from controlnet_pack.cldm_core.errors import FamilyMismatch, ShapeError
from controlnet_pack.cldm_core.lllite import (
    ControlLLLite,
    LLLiteChange,
    LLLiteConfig,
    LLLiteModule,
    LLLiteModuleConfig,
)
from controlnet_pack.cldm_core.unet import ControlledUNet

from .lllite_cases import (
    CASES,
    LLLITE_SEED,
    SECOND_SEED,
    SINGLE,
    SINGLE_HINT,
    SINGLE_STRENGTH,
    LLLiteCase,
    Module,
    single_tokens,
)
from .lllite_nets import KEY, QUERY, config_of, given, small_unet, tiny_net
from .parity_cases import INPUT_SEED, UNET_SEED
from .seeded import sample, seeded_module, seeded_state_dict, seeded_tensor, stats

GOLDENS = Path(__file__).parent / "data" / "lllite"
TOLERANCE = 2e-5

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def net_of(case: LLLiteCase, seed: int = LLLITE_SEED) -> ControlLLLite:
    net = ControlLLLite(config_of(case.modules))
    net.load_state_dict(case.state(seed))
    return net.requires_grad_(False).eval()


def unet_of(case: LLLiteCase) -> ControlledUNet:
    return seeded_module(ControlledUNet, UNetConfig.from_params(case.case.unet_params), UNET_SEED)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()


def assert_recorded(got: Mapping[str, Tensor], golden: Mapping[str, Tensor]) -> None:
    wrong = {name: e for name in got if not (e := relative(got[name], golden[name])) < TOLERANCE}
    assert not wrong


def tokens(conditioning: Tensor) -> Tensor:
    return conditioning.flatten(2).transpose(1, 2)


@pytest.fixture
def unet() -> ControlledUNet:
    return small_unet()


@EVERY
def test_conditioning_and_projection_inputs_are_kohyas(case: LLLiteCase) -> None:
    net, unet, inputs = net_of(case), unet_of(case), case.case.inputs()
    features = net.encode_hint(case.hint)
    read: dict[str, Tensor] = {}
    for module in case.modules:
        projection = unet.get_submodule(module.path)
        projection.register_forward_hook(
            lambda _, args, __, path=module.path: read.__setitem__(path, args[0])
        )
    unet(
        inputs.x,
        inputs.timesteps,
        inputs.context,
        inputs.y,
        patches=net(inputs.x, features, inputs.timesteps, inputs.context),
    )
    conditioning = [tokens(features.conditioning[m.path]) for m in case.modules]
    # The reference's own repeats the one hint for the batch when it is used, as ours does.
    lists = {"conditioning": conditioning, "input": [read[m.path] for m in case.modules]}
    got = {}
    for name, values in lists.items():
        got[f"{name}.samples"] = torch.stack([sample(value, 64) for value in values])
        got[f"{name}.stats"] = torch.stack([stats(value) for value in values])
    assert_recorded(got, load_file(GOLDENS / f"{case.name}.safetensors"))


@EVERY
def test_predictions_are_kohyas(case: LLLiteCase) -> None:
    net, second, unet = net_of(case), net_of(case, SECOND_SEED), unet_of(case)
    x, _, timesteps, context, y = case.case.inputs()
    features = net.encode_hint(case.hint)
    other = second.patch(second.encode_hint(1 - case.hint), 0.5)
    patches = {
        "eps.plain": (),
        "eps.patched": net(x, features, timesteps, context, y),
        "eps.weak": net(x, features, timesteps, context, y, strength=0.6),
        "eps.two": (net.patch(features), other),
    }
    got = {name: unet(x, timesteps, context, y, patches=p) for name, p in patches.items()}
    assert_recorded(got, load_file(GOLDENS / f"{case.name}.safetensors"))
    swapped = unet(x, timesteps, context, y, patches=(other, net.patch(features)))
    assert relative(swapped, got["eps.two"]) > 1e-3, "the order of patches counts"


@pytest.mark.parametrize("module", SINGLE, ids=lambda module: f"depth {module.depth}")
def test_single_modules_are_those_of_the_training_code(module: Module) -> None:
    net = ControlLLLite(config_of((module,)))
    net.load_state_dict(seeded_state_dict(module.shapes, LLLITE_SEED))
    hint = seeded_tensor((1, 3, *SINGLE_HINT), f"{module.key}/hint", INPUT_SEED) / 12**0.5 + 0.5
    x = seeded_tensor((2, single_tokens(module), module.channels), f"{module.key}/x", INPUT_SEED)
    with torch.no_grad():
        features = net.encode_hint(hint)
        change = net.patch(features, SINGLE_STRENGTH)[module.path]
        got = {
            f"conditioning.{module.depth}": tokens(features.conditioning[module.path]),
            f"input.{module.depth}": change(x),
        }
    assert_recorded(got, load_file(GOLDENS / "sd_scripts.safetensors"))


def test_no_patch_and_strength_0_change_nothing_bit_for_bit(unet: ControlledUNet) -> None:
    net, inputs = tiny_net(QUERY, unet=unet.config), given(unet.config)
    plain = unet(*inputs)
    features = net.encode_hint(torch.rand(1, 3, 48, 64))
    for patches in (
        (),
        ({},),
        (net.patch(features, 0.0),),
        net(*inputs[:1], features, *inputs[1:]),
    ):
        same = torch.equal(unet(*inputs, patches=patches), plain)
        assert same == all(not patch for patch in patches)


def test_a_fresh_net_changes_nothing(unet: ControlledUNet) -> None:
    net, inputs = tiny_net(QUERY, KEY, unet=unet.config, trained=False), given(unet.config)
    features = net.encode_hint(torch.rand(2, 3, 48, 64))
    patched = unet(*inputs, patches=[net.patch(features)])
    assert torch.equal(patched, unet(*inputs))


def test_one_hint_serves_a_batch_and_rows_can_be_chosen(unet: ControlledUNet) -> None:
    net, inputs = tiny_net(QUERY, unet=unet.config), given(unet.config)
    hints = torch.rand(2, 3, 48, 64)
    one = net.encode_hint(hints[:1])
    same = net(inputs[0], one.select([0, 0]), *inputs[1:])
    torch.testing.assert_close(
        unet(*inputs, patches=net(inputs[0], one, *inputs[1:])), unet(*inputs, patches=same)
    )
    both = net.encode_hint(hints)
    assert (one.batch, both.batch) == (1, 2)
    assert torch.equal(both.select([1, 0]).conditioning[QUERY][0], both.conditioning[QUERY][1])


@pytest.mark.parametrize("size", [(2, 3), (5, 7), (9, 16), (13, 6)])
@EVERY
def test_latents_of_any_size_are_steered(case: LLLiteCase, size: tuple[int, int]) -> None:
    net, unet = net_of(case), unet_of(case)
    inputs = case.case.inputs()
    x = torch.randn(len(inputs.timesteps), 4, *size)
    hint = torch.rand(1, 3, 8 * size[0], 8 * size[1])
    rest = (inputs.timesteps, inputs.context, inputs.y)
    steered = unet(x, *rest, patches=net(x, None, *rest, hint=hint))
    assert steered.shape == x.shape
    assert torch.isfinite(steered).all()
    assert not torch.allclose(steered, unet(x, *rest), atol=1e-3)


def test_uneven_hints_are_continued_at_their_lower_right_edges() -> None:
    """Tokens that the original's rounding keeps are the original's; only the last are added."""
    parts = tuple(
        LLLiteModuleConfig(f"middle_block.1.transformer_blocks.{d}.attn1.to_q", 16, d, 8, 4)
        for d in (1, 2, 3)
    )
    net = ControlLLLite(LLLiteConfig(parts)).requires_grad_(False)
    hint = torch.rand(1, 3, 8 * 9, 8 * 6)
    for part in parts:
        stride = 2 ** (part.depth - 1)
        full = net.encode_hint(hint).conditioning[part.path]
        even = hint[:, :, : 72 // (8 * stride) * 8 * stride, : 48 // (8 * stride) * 8 * stride]
        kept = net.encode_hint(even).conditioning[part.path]
        assert full.shape[2:] == (-(-9 // stride), -(-6 // stride))
        torch.testing.assert_close(full[:, :, : kept.shape[2], : kept.shape[3]], kept)


def test_conditioning_follows_a_level_deeper_than_its_depth(unet: ControlledUNet) -> None:
    """SD 1.5's middle block lies deeper than any depth that kohya's rule gives."""
    path = "middle_block.1.transformer_blocks.0.attn1.to_q"
    net = tiny_net(path, unet=unet.config)
    features = net.encode_hint(torch.rand(1, 3, 48, 64))
    change = net.patch(features)[path]
    assert isinstance(change, LLLiteChange)
    assert features.conditioning[path].shape[2:] == (6, 8)
    assert change.grid(12) == (3, 4)
    x = torch.randn(1, 12, 64)
    means = nn.functional.avg_pool2d(features.conditioning[path], 2)
    expected = net.parts()[path](x, tokens(means))
    torch.testing.assert_close(change.delta(x), expected)


@pytest.mark.parametrize("size", [(16, 16), (24, 16), (13, 9), (64, 48)])
@pytest.mark.parametrize("factor", [1.25, 1.5, 2, 2.7, 3])
def test_a_level_of_deep_shrink_is_known_by_its_count_of_tokens(
    size: tuple[int, int], factor: float, unet: ControlledUNet
) -> None:
    hint = torch.rand(1, 3, *(8 * side for side in size))
    net = tiny_net(QUERY, unet=unet.config)
    change = net.patch(net.encode_hint(hint))[QUERY]
    assert isinstance(change, LLLiteChange)
    shrunk = (round(size[0] / factor), round(size[1] / factor))
    for level in (shrunk, tuple(-(-side // 2) for side in shrunk)):
        assert change.grid(level[0] * level[1]) == level
    assert change.delta(torch.randn(1, shrunk[0] * shrunk[1], 32)).isfinite().all()


@pytest.mark.parametrize("tokens", [2 * 16 * 16, 16 * 16 + 1, 16 * 16 - 2, 7])
def test_tokens_that_are_no_picture_are_refused(tokens: int, unet: ControlledUNet) -> None:
    net = tiny_net(QUERY, unet=unet.config)
    change = net.patch(net.encode_hint(torch.rand(1, 3, 128, 128)))[QUERY]
    assert isinstance(change, LLLiteChange)
    with pytest.raises(ShapeError, match=f"reads {tokens} tokens, which are no picture of its"):
        change.grid(tokens)


def test_wrong_inputs_are_refused_with_a_sentence(unet: ControlledUNet) -> None:
    net, inputs = tiny_net(QUERY, unet=unet.config), given(unet.config)
    x, *rest = inputs
    features = net.encode_hint(torch.rand(1, 3, 48, 64))
    with pytest.raises(ShapeError, match="hint is 64x48 and the latents need 48x64: resize"):
        net(x, None, *rest, hint=torch.rand(1, 3, 64, 48))
    with pytest.raises(ShapeError, match="needs a hint"):
        net(x, None, *rest)
    with pytest.raises(ShapeError, match="3 hints were given for a batch of 2"):
        net(x, None, *rest, hint=torch.rand(3, 3, 48, 64))
    with pytest.raises(ShapeError, match=r"down to -1, expected \[0, 1\]: leave the conversion"):
        net.encode_hint(1 - 2 * torch.ones(1, 3, 48, 64))
    with pytest.raises(ShapeError, match=r"go from 0 to 255"):
        net.encode_hint(torch.eye(8).expand(1, 3, 8, 8) * 255)
    change = net.patch(features)[QUERY]
    with pytest.raises(ShapeError, match=r"hint is 48x64, and .* reads 47 tokens"):
        change(torch.randn(2, 47, 32))
    with pytest.raises(ShapeError, match="reads 0 tokens"):
        change(torch.randn(2, 0, 32))
    with pytest.raises(FamilyMismatch, match=r"takes inputs \(B, tokens, 32\)"):
        change(torch.randn(2, 48, 64))
    two = net.patch(net.encode_hint(torch.rand(2, 3, 48, 64)))[QUERY]
    with pytest.raises(ShapeError, match="2 hints were given for a batch of 3"):
        two(torch.randn(3, 48, 32))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_net_stored_in_half_precision_steers_a_float32_base(
    unet: ControlledUNet, dtype: torch.dtype
) -> None:
    net, inputs = tiny_net(QUERY, KEY, unet=unet.config), given(unet.config)
    hint = torch.rand(1, 3, 48, 64)
    half = copy.deepcopy(net).to(dtype)
    x, *rest = inputs
    got = unet(*inputs, patches=half(x, None, *rest, hint=hint))
    assert got.dtype == torch.float32
    assert relative(got, unet(*inputs, patches=net(x, None, *rest, hint=hint))) < 0.05


def test_gradients_reach_the_modules_through_the_frozen_base(unet: ControlledUNet) -> None:
    net, inputs = tiny_net(QUERY, unet=unet.config).requires_grad_(True), given(unet.config)
    x, *rest = inputs
    patches = net(x, None, *rest, hint=torch.rand(1, 3, 48, 64))
    unet(*inputs, patches=patches).square().mean().backward()
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_layers_come_from_the_given_classes() -> None:
    made = []

    class Ops:
        class Linear(nn.Linear):
            def __init__(self, *args: int) -> None:
                super().__init__(*args)
                made.append(self)

        class Conv2d(nn.Conv2d):
            def __init__(self, *args: int, **settings: int) -> None:
                super().__init__(*args, **settings)
                made.append(self)

    part = LLLiteModuleConfig(QUERY, 8, 3, 4, 4)
    module = LLLiteModule(part, 3, Ops)
    assert {id(m) for m in module.modules() if list(m.parameters(recurse=False))} == set(
        map(id, made)
    )
