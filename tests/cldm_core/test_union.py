"""Union ControlNets against recorded numbers; types by name, scales, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from controlnet_pack.cldm_core import (
    TINY,
    CheckpointMismatch,
    CldmError,
    ControlNet,
    ControlNetConfig,
    Residuals,
    ShapeError,
)
from controlnet_pack.cldm_core.checkpoint.detect_union import union_config
from controlnet_pack.cldm_core.errors import UnknownControlType
from controlnet_pack.cldm_core.union import (
    CONTROL_TYPES,
    UnionConfig,
    UnionControlNet,
    UnionFeatures,
    control_type_names,
    control_type_number,
)

from .parity_cases import SDXL
from .seeded import seeded_module, shapes_of
from .union_cases import AUTHOR, HOST, UNION_SEED, UnionCase

GOLDENS = Path(__file__).parent / "data" / "union"

# Relative to the largest recorded value: float32's rounding. The worst seen is 1.5e-6.
TOLERANCE = 1e-5

CASES = pytest.mark.parametrize("case", AUTHOR + HOST, ids=lambda case: case.name)


def net_of(case: UnionCase) -> UnionControlNet:
    config = UnionConfig(ControlNetConfig.from_params(case.params), **case.values)
    return seeded_module(UnionControlNet, config, UNION_SEED)


def tiny(types: int = 8) -> UnionControlNet:
    return seeded_module(UnionControlNet, UnionConfig(ControlNetConfig(TINY), types), UNION_SEED)


def given(batch: int = 1) -> dict[str, Tensor]:
    return {
        "x": torch.randn(batch, 4, 4, 8),
        "timesteps": torch.full((batch,), 500),
        "context": torch.randn(batch, 5, 128),
    }


def picture(batch: int = 1) -> Tensor:
    return torch.rand(batch, 3, 32, 64)


def run(case: UnionCase, net: UnionControlNet) -> Residuals:
    i = case.inputs()
    return net(i.x, net.encode_hint(case.hints_by_number()), i.timesteps, i.context, i.y)


def worst(residuals: Residuals, golden: dict[str, Tensor]) -> float:
    named = {f"output.{i}": item for i, item in enumerate(residuals.output)}
    named["middle.0"] = residuals.middle[0]
    assert named.keys() == golden.keys()
    found = []
    for name, want in golden.items():
        got = named[name]
        assert got is not None
        assert got.shape == want.shape
        found.append(float((got - want).abs().max() / want.abs().max()))
    return max(found)


@CASES
def test_residuals_equal_the_references(case: UnionCase) -> None:
    golden = load_file(GOLDENS / f"{case.name}.safetensors")
    assert worst(run(case, net_of(case)), golden) < TOLERANCE


@CASES
def test_keys_are_the_references(case: UnionCase) -> None:
    with safe_open(GOLDENS / f"{case.name}.safetensors", framework="pt") as file:
        keys = json.loads(file.metadata()["keys"])
    assert {key: list(shape) for key, shape in shapes_of(net_of(case)).items()} == keys


def test_the_recorded_numbers_see_the_transformer() -> None:
    """Values count; queries and keys of a token that sees itself alone have no effect."""
    case = AUTHOR[1]
    golden = load_file(GOLDENS / f"{case.name}.safetensors")
    net = net_of(case)
    attention = net.get_submodule("transformer_layes.0.attn")
    weight = attention.get_parameter("in_proj_weight")
    width = weight.shape[1]
    with torch.no_grad():
        weight[: 2 * width] += 1
    assert worst(run(case, net), golden) < TOLERANCE
    with torch.no_grad():
        weight[2 * width :] *= 1.1
    assert worst(run(case, net), golden) > 10 * TOLERANCE


@pytest.mark.parametrize("types", [6, 8])
def test_the_full_size_has_the_published_shapes_and_is_read_from_keys(types: int) -> None:
    config = UnionConfig(ControlNetConfig.from_params({**SDXL, "hint_channels": 3}), types)
    with torch.device("meta"):
        net = UnionControlNet(config)
    shapes = shapes_of(net)
    assert shapes["task_embedding"] == (types, 320)
    assert shapes["transformer_layes.0.attn.in_proj_weight"] == (960, 320)
    assert shapes["transformer_layes.0.mlp.c_fc.weight"] == (1280, 320)
    assert shapes["spatial_ch_projs.weight"] == (320, 320)
    assert shapes["control_add_embedding.linear_1.weight"] == (1280, 256 * types)
    assert union_config(net.state_dict()) == config


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("task_embedding", None),
        ("task_embedding", (6,)),
        ("task_embedding", (8, 320)),
        ("task_embedding", (6, 32)),
        ("control_add_embedding.linear_1.weight", None),
        ("control_add_embedding.linear_1.weight", (1280, 7)),
        ("input_hint_block.0.weight", None),
        ("input_blocks.0.0.weight", (320,)),
        ("input_blocks.0.0.weight", (7, 4, 3, 3)),
    ],
)
def test_damaged_keys_are_a_mismatch(key: str, shape: tuple[int, ...] | None) -> None:
    config = UnionConfig(ControlNetConfig.from_params({**SDXL, "hint_channels": 3}))
    with torch.device("meta"):
        state = dict(UnionControlNet(config).state_dict())
        del state[key]
        if shape is not None:
            state[key] = torch.zeros(shape)
    with pytest.raises(CheckpointMismatch):
        union_config(state)


def test_configurations_survive_json() -> None:
    config = UnionConfig(ControlNetConfig(TINY), 8)
    assert UnionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for values in ({}, {"controlnet": 1}, {**config.to_dict(), "control_types": 0}, {"x": 1}):
        with pytest.raises(CldmError):
            UnionConfig.from_dict(values)


# Types by name.


def test_types_have_the_authors_numbers() -> None:
    names = ("openpose", "depth", "scribble", "canny", "normal", "segment", "tile", "repaint")
    assert control_type_names(8) == names
    assert control_type_names(6) == names[:6]
    assert control_type_names(7) == ()
    for number, aliases in enumerate(CONTROL_TYPES):
        assert {control_type_number(alias, 8) for alias in aliases} == {number}
    everything = [alias for aliases in CONTROL_TYPES for alias in aliases]
    assert len(everything) == len(set(everything))


@pytest.mark.parametrize(
    ("kind", "number"),
    [("Depth", 1), (" MLSD ", 3), ("Anime Lineart", 3), ("super-resolution", 6), (7, 7), (0, 0)],
)
def test_names_are_read_kindly(kind: str | int, number: int) -> None:
    assert control_type_number(kind, 8) == number


@pytest.mark.parametrize("kind", ["shuffle", "", 6, -1, True, 1.0, None])
def test_unknown_types_are_refused_with_what_the_net_knows(kind: Any) -> None:
    with pytest.raises(UnknownControlType, match=r"openpose, depth, .*segment, or a number"):
        control_type_number(kind, 6)


def test_types_of_promax_are_told_on_the_smaller_net() -> None:
    with pytest.raises(UnknownControlType, match="Only the ProMax net with 8 types knows it"):
        control_type_number("tile", 6)


def test_nets_of_other_counts_take_numbers() -> None:
    assert control_type_number(11, 12) == 11
    with pytest.raises(UnknownControlType, match="one of its 12, a number from 0 to 11"):
        control_type_number("canny", 12)


# Several hints.


def test_the_order_of_the_hints_and_their_names_change_nothing() -> None:
    net, a, b = tiny(), picture(), picture()
    one = net.encode_hint({"canny": a, "depth": b})
    other = net.encode_hint({1: b, "mlsd": a})
    assert torch.equal(one.tensor, other.tensor)
    assert torch.equal(one.flags, other.flags)
    assert one.flags.tolist() == [0, 1, 0, 1, 0, 0, 0, 0]


def test_hints_add_up_with_their_scales() -> None:
    net, a, b = tiny(), picture(), picture()
    alone = net.encode_hint({"canny": a}).tensor, net.encode_hint({"depth": b}).tensor
    both = net.encode_hint({"canny": a, "depth": b}, scales={"depth": 0.25})
    torch.testing.assert_close(both.tensor, alone[0] + 0.25 * alone[1])
    plain = net.encode_hint({"canny": a, "depth": b})
    assert torch.equal(plain.tensor, net.encode_hint({"canny": a, "depth": b}, scales={}).tensor)
    silent = net.encode_hint({"canny": a, "depth": b}, scales={"depth": 0})
    assert torch.equal(silent.tensor, alone[0])
    assert torch.equal(silent.flags, plain.flags)


def test_the_type_counts() -> None:
    net, hint, inputs = tiny(), picture(), given()
    canny, depth = (net(features=net.encode_hint({k: hint}), **inputs) for k in ("canny", "depth"))
    assert not torch.allclose(canny.middle[0], depth.middle[0], atol=1e-3)


def test_pictures_of_a_batch_do_not_mix() -> None:
    net, inputs, hint = tiny(), given(2), picture(2)
    both = net(features=net.encode_hint({"tile": hint}), **inputs)
    for index in range(2):
        part = slice(index, index + 1)
        alone = net(
            features=net.encode_hint({"tile": hint[part]}),
            **{name: value[part] for name, value in inputs.items()},
        )
        for a, b in zip(both.output, alone.output, strict=True):
            torch.testing.assert_close(a[part], b, rtol=1e-4, atol=1e-4)


def test_features_of_one_picture_serve_a_batch() -> None:
    net, inputs = tiny(), given(3)
    features = net.encode_hint({"depth": picture()})
    wide = features.map(lambda tensor: tensor.expand(3, -1, -1, -1))
    assert isinstance(wide, UnionFeatures)
    assert torch.equal(wide.flags, features.flags)
    narrow = net(features=features, **inputs)
    for a, b in zip(narrow.output, net(features=wide, **inputs).output, strict=True):
        torch.testing.assert_close(a, b)


def test_one_picture_for_one_type_and_several_for_another() -> None:
    net, one, several = tiny(), picture(), picture(2)
    mixed = net.encode_hint({"depth": one, "canny": several})
    wide = net.encode_hint({"depth": one.expand(2, -1, -1, -1), "canny": several})
    torch.testing.assert_close(mixed.tensor, wide.tensor)


def test_forward_encodes_a_hint_itself() -> None:
    net, inputs, hints = tiny(), given(), {"openpose": picture()}
    own = net(features=None, hint=hints, **inputs)
    ready = net(features=net.encode_hint(hints), **inputs)
    assert all(map(torch.equal, own.output, ready.output))


def test_a_net_in_half_precision_computes_in_it() -> None:
    net, inputs = tiny().to(torch.bfloat16), given()
    features = net.encode_hint({"openpose": picture()})
    assert features.tensor.dtype == torch.bfloat16
    cast = {k: v if k == "timesteps" else v.to(torch.bfloat16) for k, v in inputs.items()}
    assert net(features=features, **cast).middle[0].dtype == torch.bfloat16


def test_raw_parameters_may_be_stored_in_another_type() -> None:
    net = tiny()
    stored = dict.fromkeys(("task_embedding", "transformer_layes.0.attn.in_proj_weight"))
    before = net.encode_hint({"depth": torch.full((1, 3, 32, 64), 0.5)}).tensor
    for name in stored:
        parent, _, leaf = name.rpartition(".")
        value = net.get_parameter(name).to(torch.float64)
        setattr(net.get_submodule(parent), leaf, torch.nn.Parameter(value, requires_grad=False))
    after = net.encode_hint({"depth": torch.full((1, 3, 32, 64), 0.5)}).tensor
    assert after.dtype == torch.float32
    assert torch.equal(before, after)


def test_a_fresh_net_adds_nothing() -> None:
    torch.manual_seed(0)
    net = UnionControlNet(UnionConfig(ControlNetConfig(TINY))).requires_grad_(False)
    residuals = net(features=net.encode_hint({"depth": picture()}), **given())
    assert not any(item.any() for item in (*residuals.output, *residuals.middle))
    assert float(net.task_embedding.std()) == pytest.approx(8, rel=0.2)


def test_wrong_hints_are_refused_with_a_sentence() -> None:
    net, hint = tiny(6), picture()
    with pytest.raises(ShapeError, match=r"told the type of each hint: give \{type: hint\}.*canny"):
        net.encode_hint(hint)  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match="told the type of each hint"):
        net.encode_hint({})
    with pytest.raises(UnknownControlType, match="'shuffle' is unknown to this net"):
        net.encode_hint({"shuffle": hint})
    with pytest.raises(ShapeError, match="'canny' and 'mlsd' are the same control type, number 3"):
        net.encode_hint({"canny": hint, "mlsd": hint})
    with pytest.raises(ShapeError, match="A scale was given for depth, but no hint of this type"):
        net.encode_hint({"canny": hint}, scales={"depth": 1.0})
    with pytest.raises(ShapeError, match="'hed' and 2 are the same control type"):
        net.encode_hint({"hed": hint}, scales={"hed": 1.0, 2: 1.0})
    for scale in (float("nan"), "1", None, True):
        with pytest.raises(ShapeError, match=r"The scale of canny is .*expected a finite number"):
            net.encode_hint({"canny": hint}, scales={"canny": scale})
    with pytest.raises(ShapeError, match="told the type of each scale"):
        net.encode_hint({"canny": hint}, scales=[1.0])  # type: ignore[arg-type]
    with pytest.raises(ShapeError, match=r"this net takes \(B, 3, 8h, 8w\)"):
        net.encode_hint({"canny": torch.rand(1, 1, 32, 64)})
    with pytest.raises(ShapeError, match="different sizes or counts: 1 of 32x64, 1 of 64x64"):
        net.encode_hint({"openpose": hint, "depth": torch.rand(1, 3, 64, 64)})
    with pytest.raises(ShapeError, match="different sizes or counts"):
        net.encode_hint({"openpose": picture(2), "depth": picture(3)})


def test_wrong_features_are_refused_with_a_sentence() -> None:
    net, inputs = tiny(), given()
    with pytest.raises(ShapeError, match="needs a hint"):
        net(features=None, **inputs)
    with pytest.raises(ShapeError, match="not those of a union ControlNet with 8 types"):
        net(features=torch.zeros(1, 64, 4, 8), **inputs)
    with pytest.raises(ShapeError, match="not those of a union ControlNet with 8 types"):
        net(features=tiny(6).encode_hint({"depth": picture()}), **inputs)
    with pytest.raises(ShapeError, match="hint is 64x64 and the latents need 32x64"):
        net(features=net.encode_hint({"depth": torch.rand(1, 3, 64, 64)}), **inputs)
    with pytest.raises(ShapeError, match="2 hints were given for a batch of 1"):
        net(features=net.encode_hint({"depth": picture(2)}), **inputs)


def test_the_encoder_is_that_of_a_controlnet() -> None:
    """Without the types' part, a union net's residuals are its encoder's."""
    net, inputs, hint = tiny(), given(), picture()
    plain = ControlNet(ControlNetConfig(TINY)).requires_grad_(False)
    own = plain.state_dict()
    plain.load_state_dict({key: value for key, value in net.state_dict().items() if key in own})
    for name in ("spatial_ch_projs", "control_add_embedding.linear_2"):
        for parameter in net.get_submodule(name).parameters():
            torch.nn.init.zeros_(parameter)
    union = net(features=net.encode_hint({"depth": hint}), **inputs)
    single = plain(features=plain.encode_hint(hint), **inputs)
    assert all(map(torch.equal, union.output, single.output))
    assert torch.equal(union.middle[0], single.middle[0])
