"""T2I-Adapters against recorded numbers, both key layouts, and what is refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    SDXL,
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlledUNet,
    FamilyMismatch,
    Residuals,
    ShapeError,
    UNetConfig,
    UnsupportedCheckpoint,
)
from controlnet_pack.cldm_core.checkpoint.detect_t2i import (
    canonical_t2i,
    diffusers_t2i,
    t2i_config,
)
from controlnet_pack.cldm_core.t2i_adapter import (
    AdapterConfig,
    T2IAdapter,
    require_adapter_fit,
)

from .parity_cases import UNET_SEED
from .seeded import seeded_module, shapes_of
from .t2i_cases import ADAPTER_SEED, HOST, ORIGINAL, AdapterCase

GOLDENS = Path(__file__).parent / "data" / "t2i"

# Relative to the largest recorded value: float32's rounding on other machines. Where it
# was recorded, nothing differs.
TOLERANCE = 1e-5

CASES = pytest.mark.parametrize("case", ORIGINAL + HOST, ids=lambda case: case.name)
SMALL = AdapterConfig((32, 64, 128, 128))
SMALL_XL = AdapterConfig((32, 64, 128, 128), kind="xl")
NO_TEXT = (torch.zeros(1), None)


def adapter(config: AdapterConfig) -> T2IAdapter:
    return seeded_module(T2IAdapter, config, ADAPTER_SEED)


def adapter_of(case: AdapterCase) -> T2IAdapter:
    return adapter(AdapterConfig(**case.values))


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def shapes(residuals: Residuals) -> dict[int, tuple[int, ...]]:
    return {i: tuple(t.shape[2:]) for i, t in enumerate(residuals.input) if t is not None}


@CASES
def test_features_equal_the_references(case: AdapterCase) -> None:
    golden = load_file(GOLDENS / f"{case.name}.safetensors")
    features = adapter_of(case).encode_hint(case.hint())
    assert len(features) == 4
    for index, item in enumerate(features):
        assert relative(item, golden[f"features.{index}"]) < TOLERANCE, index


@pytest.mark.parametrize(
    "case", [case for case in HOST if case.unet is not None], ids=lambda case: case.name
)
def test_a_unet_with_an_adapter_equals_the_host(case: AdapterCase) -> None:
    golden = load_file(GOLDENS / f"{case.name}.safetensors")
    assert case.unet is not None
    unet = seeded_module(ControlledUNet, UNetConfig.from_params(case.unet.unet_params), UNET_SEED)
    net, given = adapter_of(case), case.inputs()
    features = net.encode_hint(case.hint())
    control = net(given.x, features, given.timesteps, given.context, given.y)
    plain = unet(given.x, given.timesteps, given.context, given.y)
    steered = unet(given.x, given.timesteps, given.context, given.y, control)
    assert relative(plain, golden["eps.plain"]) < TOLERANCE
    assert relative(steered, golden["eps.adapter"]) < TOLERANCE


@CASES
def test_keys_are_the_references(case: AdapterCase) -> None:
    with safe_open(GOLDENS / f"{case.name}.safetensors", framework="pt") as file:
        keys = json.loads(file.metadata()["keys"])
    assert {key: list(shape) for key, shape in shapes_of(adapter_of(case)).items()} == keys


@CASES
def test_the_configuration_is_read_from_keys(case: AdapterCase) -> None:
    net = adapter_of(case)
    assert t2i_config(net.state_dict()) == net.config


@pytest.mark.parametrize(
    ("config", "count"),
    [
        (AdapterConfig(), 77_369_280),
        (AdapterConfig(kind="light", num_res_blocks=4), 18_689_200),
        (AdapterConfig(kind="xl"), 79_028_160),
    ],
    ids=["full", "light", "xl"],
)
def test_full_sizes_are_the_originals_and_are_read_from_keys(
    config: AdapterConfig, count: int
) -> None:
    with torch.device("meta"):
        net = T2IAdapter(config)
    assert sum(parameter.numel() for parameter in net.parameters()) == count
    assert t2i_config(net.state_dict()) == config


def test_features_go_behind_the_blocks_of_each_family() -> None:
    x = torch.zeros(1, 4, 8, 8)
    sd = adapter(SMALL)(x, None, *NO_TEXT, hint=torch.rand(1, 3, 64, 64))
    assert shapes(sd) == {2: (8, 8), 5: (4, 4), 8: (2, 2), 11: (1, 1)}
    assert (sd.output, sd.middle) == ((), ())
    xl = adapter(SMALL_XL)(x, None, *NO_TEXT, hint=torch.rand(1, 3, 64, 64))
    assert shapes(xl) == {3: (4, 4), 5: (4, 4), 8: (2, 2)}
    assert [tuple(item.shape) for item in xl.middle if item is not None] == [(1, 128, 2, 2)]


@pytest.mark.parametrize("size", [(8, 8), (5, 7), (1, 1), (13, 6), (9, 3)])
@pytest.mark.parametrize("kind", ["full", "light", "xl"])
def test_features_have_the_unets_sizes_at_odd_latents(kind: str, size: tuple[int, int]) -> None:
    net = adapter(AdapterConfig((32, 64, 128, 128), kind=kind))
    hint = torch.rand(1, 3, 8 * size[0], 8 * size[1])
    residuals = net(torch.zeros(1, 4, *size), net.encode_hint(hint), *NO_TEXT)
    levels = [size]
    for _ in range(3):
        levels.append((-(-levels[-1][0] // 2), -(-levels[-1][1] // 2)))
    expected = {3: levels[1], 5: levels[1], 8: levels[2]}
    if kind != "xl":
        expected = {3 * level + 2: size for level, size in enumerate(levels)}
    assert shapes(residuals) == expected


def test_an_xl_hint_is_continued_by_its_last_rows_up_to_squares_of_16() -> None:
    net, hint = adapter(SMALL_XL), torch.rand(1, 3, 40, 56)
    whole = torch.nn.functional.pad(hint, (0, 8, 0, 8), mode="replicate")
    for a, b in zip(net.encode_hint(hint), net.encode_hint(whole), strict=True):
        assert torch.equal(a, b)


def test_a_colour_hint_becomes_grey_and_a_grey_one_stays() -> None:
    net, hint = (
        adapter(AdapterConfig((32, 64, 128, 128), hint_channels=1)),
        torch.rand(1, 3, 64, 64),
    )
    grey = hint.mean(1, keepdim=True)
    for a, b in zip(net.encode_hint(hint), net.encode_hint(grey), strict=True):
        assert torch.equal(a, b)


def test_one_hint_serves_a_batch() -> None:
    net = adapter(SMALL)
    residuals = net(torch.zeros(3, 4, 8, 8), net.encode_hint(torch.rand(1, 3, 64, 64)), *NO_TEXT)
    assert residuals.input[2] is not None
    assert residuals.input[2].shape[0] == 1


def test_a_hint_is_cast_to_the_nets_type() -> None:
    net = adapter(SMALL).to(torch.bfloat16)
    assert net.encode_hint(torch.rand(1, 3, 64, 64))[0].dtype == torch.bfloat16


def test_the_result_does_not_depend_on_the_latents() -> None:
    net = adapter(SMALL)
    features = net.encode_hint(torch.rand(1, 3, 64, 64))
    residuals = net(torch.randn(1, 4, 8, 8), features, torch.tensor([5]), None)
    kept = [item for item in residuals.input if item is not None]
    assert all(a is b for a, b in zip(kept, features, strict=True))


def test_wrong_inputs_are_refused_with_a_sentence() -> None:
    net, x = adapter(SMALL), torch.zeros(2, 4, 8, 8)
    features = net.encode_hint(torch.rand(1, 3, 64, 64))
    with pytest.raises(ShapeError, match=r"this net takes \(B, 3, 8h, 8w\)"):
        net.encode_hint(torch.rand(1, 1, 64, 64))
    with pytest.raises(ShapeError, match=r"this net takes \(B, 1 or 3, 8h, 8w\)"):
        adapter(AdapterConfig((32, 64, 128, 128), hint_channels=1)).encode_hint(
            torch.rand(1, 2, 64, 64)
        )
    with pytest.raises(ShapeError, match="divide pictures of 0 to 255"):
        net.encode_hint(255 * torch.rand(1, 3, 64, 64))
    with pytest.raises(ShapeError, match="needs a hint"):
        net(x, None, *NO_TEXT)
    with pytest.raises(ShapeError, match="first feature is 8x8 and the latents need 8x9: encode a"):
        net(torch.zeros(2, 4, 8, 9), features, *NO_TEXT)
    with pytest.raises(ShapeError, match="3 hints were given for a batch of 2"):
        net(x, net.encode_hint(torch.rand(3, 3, 64, 64)), *NO_TEXT)
    with pytest.raises(ShapeError, match="give what encode_hint returned"):
        net(x, features[:3], *NO_TEXT)
    with pytest.raises(ShapeError, match=r"latents have shape \(4, 8, 8\)"):
        net(x[0, None][0], features, *NO_TEXT)


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"kind": "style"}, "kind is 'style', expected 'full', 'light' or 'xl'"),
        ({"kind": ["xl"]}, "kind is"),
        ({"kernel_size": 2}, "kernel_size is 2, expected an odd number"),
        ({"kind": "xl", "channels": (32, 64)}, "channels has 2 entries, SDXL takes 4"),
        ({"kind": "light", "use_conv": True}, "a light adapter has no"),
        ({"kind": "light", "channels": (2, 4)}, "expected at least 4 each"),
        ({"channels": ()}, "channels is"),
        ({"hint_channels": 0}, "hint_channels is 0"),
        ({"depth": 1}, "not the configuration of a T2I-Adapter"),
    ],
)
def test_wrong_configurations_are_refused(values: dict[str, object], sentence: str) -> None:
    with pytest.raises(CldmError, match=sentence):
        AdapterConfig.from_dict(values)


def test_configurations_survive_json() -> None:
    config = AdapterConfig((32, 64), 1, 3, "full", 3, True, True)
    assert AdapterConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("kind", ["full", "light", "xl"])
@pytest.mark.parametrize("family", [SD15, SD21, SDXL, TINY], ids=["sd15", "sd21", "sdxl", "tiny"])
def test_an_adapter_fits_its_family_alone(kind: str, family: UNetConfig) -> None:
    config = AdapterConfig(kind=kind)
    if family is not TINY and (kind == "xl") == (family is SDXL):
        require_adapter_fit(config, family)
        return
    with pytest.raises(FamilyMismatch, match=r"This T2I-Adapter is for SD.*of its family"):
        require_adapter_fit(config, family)


def test_an_adapter_of_another_family_is_refused_by_the_unet() -> None:
    xl = next(case for case in HOST if case.name == "xl_unet")
    assert xl.unet is not None
    unet = seeded_module(ControlledUNet, UNetConfig.from_params(xl.unet.unet_params), UNET_SEED)
    given = xl.inputs()
    features = adapter(SMALL).encode_hint(torch.rand(1, 3, 64, 96))
    control = adapter(SMALL)(given.x, features, given.timesteps, None)
    with pytest.raises(FamilyMismatch, match="adds to the encoder's block 11 and this UNet's last"):
        unet(given.x, given.timesteps, given.context, given.y, control)


class CastingConv2d(torch.nn.Conv2d):
    """A layer as hosts have it: computes in its input's type, whatever it stores."""

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x)
        return self._conv_forward(x, self.weight.to(x), bias)


@pytest.mark.parametrize("config", [SMALL, SMALL_XL, AdapterConfig((32, 64), kind="light")])
def test_casting_layers_of_a_host_compute_in_the_hints_type(config: AdapterConfig) -> None:
    ops = type("Ops", (), {**vars(torch.nn), "Conv2d": CastingConv2d})
    plain = adapter(config).half().float()
    with torch.device("meta"):
        net = T2IAdapter(config, ops)
    net.load_state_dict({k: v.half() for k, v in plain.state_dict().items()}, assign=True)
    hint = torch.rand(1, 3, 32, 32)
    for a, b in zip(net.encode_hint(hint), plain.encode_hint(hint), strict=True):
        assert a.dtype == torch.float32
        assert torch.equal(a, b)


# Both layouts of keys.


@pytest.mark.parametrize(
    ("kind", "kwargs"),
    [
        ("full_adapter", {"num_res_blocks": 2}),
        ("full_adapter", {"num_res_blocks": 3, "in_channels": 1}),
        ("full_adapter_xl", {"num_res_blocks": 2, "downscale_factor": 16}),
        ("light_adapter", {"num_res_blocks": 4, "channels": [32, 64, 128]}),
    ],
    ids=["full", "full_grey", "xl", "light"],
)
def test_diffusers_files_load_and_give_its_features(kind: str, kwargs: dict[str, object]) -> None:
    diffusers = pytest.importorskip("diffusers")
    values = {"channels": [32, 64, 128, 128], **kwargs}
    theirs = diffusers.T2IAdapter(adapter_type=kind, **values).requires_grad_(False)
    state = canonical_t2i(theirs.state_dict())
    net = T2IAdapter(t2i_config(state)).requires_grad_(False)
    net.load_state_dict(state, assign=True)
    hint = torch.rand(1, net.config.hint_channels, 128, 128)
    for a, b in zip(net.encode_hint(hint), theirs(hint), strict=True):
        assert relative(a, b) < TOLERANCE
    back = diffusers_t2i(state)
    assert back.keys() == theirs.state_dict().keys()
    assert all(torch.equal(back[key], value) for key, value in theirs.state_dict().items())


@CASES
def test_keys_go_to_diffusers_and_back(case: AdapterCase) -> None:
    state = adapter_of(case).state_dict()
    assert canonical_t2i(state) == state
    config = t2i_config(state)
    if config.use_conv or config.skip_conv or config.kernel_size > 1:
        with pytest.raises(
            UnsupportedCheckpoint, match="layers that diffusers' T2IAdapter doesn't"
        ):
            diffusers_t2i(state)
    else:
        back = canonical_t2i(diffusers_t2i(state))
        assert back.keys() == state.keys()
        assert all(back[key] is value for key, value in state.items())


def test_the_prefix_of_training_checkpoints_is_dropped() -> None:
    state = adapter(SMALL).state_dict()
    assert canonical_t2i({f"adapter.{key}": value for key, value in state.items()}) == state


def test_uneven_or_doubled_keys_are_refused() -> None:
    state = diffusers_t2i(adapter(SMALL).state_dict())
    extra = {"adapter.body.0.resnets.2.block1.weight": torch.zeros(32, 32, 3, 3)}
    whole = canonical_t2i({**state, "adapter.body.0.resnets.9.block1.weight": torch.zeros(1)})
    assert "body.9.block1.weight" in whole
    with pytest.raises(CheckpointMismatch, match="can't be divided into levels"):
        t2i_config(canonical_t2i({**state, **extra}))
    with pytest.raises(CheckpointMismatch, match="keys of this T2I-Adapter become"):
        canonical_t2i({**state, "conv_in.weight": torch.zeros(1)})


@pytest.mark.parametrize(
    "damage",
    [
        {"conv_in.weight": torch.zeros(32, 192)},
        {"conv_in.weight": torch.zeros(32, 100, 3, 3)},
        {"conv_in.weight": torch.zeros(0, 192, 3, 3)},
        {"body.3.block1.weight": torch.zeros(7, 7, 3, 3)},
        {"body.0.block2.weight": torch.zeros(32, 32, 2, 2)},
        {"body.3.block1.weight": torch.zeros(())},
        {"body.1.down_opt.op.weight": torch.zeros(32, 32, 3, 3)},
        {"body.0.out_conv.weight": torch.zeros(32, 32, 1, 1)},
        {"conv_in.weight": None},
        {"body.0.block1.weight": None},
    ],
)
def test_damaged_keys_are_a_mismatch(damage: dict[str, Tensor | None]) -> None:
    state = {**adapter(SMALL).state_dict(), **damage}
    with pytest.raises(CheckpointMismatch):
        t2i_config({key: value for key, value in state.items() if value is not None})
