"""The configuration of a ControlNet-LLLite: read from keys, checked, and held against a UNet."""

import re

import pytest
import torch
from torch import Tensor

from controlnet_pack.cldm_core.checkpoint.detect_lllite import lllite_config
from controlnet_pack.cldm_core.config import SD15, SDXL, UNetConfig
from controlnet_pack.cldm_core.errors import CheckpointMismatch, CldmError, FamilyMismatch
from controlnet_pack.cldm_core.lllite import (
    ControlLLLite,
    LLLiteConfig,
    LLLiteModuleConfig,
    check_fits,
)
from controlnet_pack.cldm_core.projections import projections

from .lllite_cases import CASES, LLLiteCase
from .lllite_nets import KEY, QUERY, config_of, tiny_net
from .parity_cases import ORIGINAL

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EVERY
def test_the_configuration_is_read_from_the_keys(case: LLLiteCase) -> None:
    config = config_of(case.modules)
    state = case.state()
    found = lllite_config(state)
    assert found == config
    # Whatever order a file has.
    assert lllite_config(dict(sorted(state.items(), reverse=True))) == config
    assert LLLiteConfig.from_dict(found.to_dict()) == config
    with torch.device("meta"):
        net = ControlLLLite(found)
    net.load_state_dict(state, assign=True, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())


def test_hint_channels_and_depths_are_read_from_the_keys() -> None:
    parts = tuple(
        LLLiteModuleConfig(f"middle_block.1.transformer_blocks.{n}.attn2.to_q", 32, n, 2 * n, 5)
        for n in (1, 2, 3)
    )
    config = LLLiteConfig(parts, hint_channels=4)
    assert lllite_config(ControlLLLite(config).state_dict()) == config


def test_the_published_sdxl_layout_has_136_modules_and_fits() -> None:
    paths = [
        path
        for path in projections(SDXL)
        if not path.startswith("output") and not re.search(r"attn2\.to_[kv]", path)
    ]
    assert len(paths) == 136
    widths = projections(SDXL)
    config = LLLiteConfig(tuple(LLLiteModuleConfig(p, widths[p], 2, 32, 64) for p in paths))
    check_fits(config, SDXL)
    with torch.device("meta"):
        net = ControlLLLite(config)
    assert len(net.state_dict()) == 136 * 10
    assert set(lllite_config(net.state_dict()).modules) == set(config.modules)


def test_a_net_of_another_family_is_refused_before_sampling() -> None:
    sdxl = "input_blocks.4.1.transformer_blocks.1.attn1.to_q"
    wide = LLLiteConfig((LLLiteModuleConfig(sdxl, 640, 2, 32, 64),))
    check_fits(wide, SDXL)
    with pytest.raises(FamilyMismatch, match="640 wide, and the base model has none there"):
        check_fits(wide, SD15)
    small = LLLiteConfig((LLLiteModuleConfig(QUERY.replace("1.1", "4.1", 1), 320, 2, 32, 64),))
    with pytest.raises(FamilyMismatch, match="320 wide, and the base model has one 640 wide"):
        check_fits(small, SDXL)


def state() -> dict[str, Tensor]:
    return tiny_net(QUERY, KEY, unet=UNetConfig.from_params(ORIGINAL[0].unet_params)).state_dict()


def damaged(name: str, value: Tensor | None) -> dict[str, Tensor]:
    changed = state()
    key = f"lllite_unet_{QUERY.replace('.', '_')}.{name}"
    if value is None:
        del changed[key]
    else:
        changed[key] = value
    return changed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "No key starts with lllite_unet_"),
        ({"lllite_unet_": torch.zeros(1)}, "expected only modules for"),
        ({"lllite_unet_proj_out.up.0.weight": torch.zeros(1)}, "expected only modules for"),
        (
            {f"lllite_unet_{QUERY.replace('.', '_').replace('attn1_to_q', 'attn2_to_k')}.a": 0},
            "expected only modules for",
        ),
        (damaged("down.0.weight", None), "down.0.weight is missing"),
        (damaged("down.0.weight", torch.zeros(3, 4, 1, 1)), "expected 2 sizes above 0"),
        (damaged("down.0.weight", torch.zeros(3, 0)), "expected 2 sizes above 0"),
        (damaged("conditioning1.0.weight", torch.zeros(4)), "expected 4 sizes above 0"),
        (damaged("conditioning1.0.weight", torch.zeros(4, 1, 4, 4)), "1 and 3 channels"),
        (damaged("conditioning1.2.weight", torch.zeros(8, 4, 3, 3)), "a kernel 3 wide"),
        (damaged("conditioning1.2.weight", None), "conditioning1.2.weight is missing"),
        (damaged("conditioning1.2.weight", torch.zeros(6, 4, 2, 2)), "makes it 8 by 4"),
        (damaged("mid.0.weight", torch.zeros(12, 12)), "makes it 12 by 20"),
        (damaged("up.0.weight", torch.zeros(3, 12)), "makes it 64 by 12"),
    ],
)
def test_other_keys_are_refused_with_a_sentence(changed: dict, message: str) -> None:
    with pytest.raises(CheckpointMismatch, match=message):
        lllite_config(changed)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"path": "out.0"}, "expected the path of a projection"),
        ({"path": QUERY.replace("attn1.to_q", "attn2.to_k")}, "expected the path of a projection"),
        ({"path": 3}, "expected the path of a projection"),
        ({"depth": 4}, "depth is 4, expected 1, 2 or 3"),
        ({"depth": True}, "depth is True, expected 1, 2 or 3"),
        ({"cond_emb_dim": 7}, "cond_emb_dim is 7, expected a positive even number"),
        ({"mlp_dim": 0}, "mlp_dim is 0, expected a positive whole number"),
        ({"width": 1}, "not the configuration of a ControlNet-LLLite"),
    ],
)
def test_configurations_that_make_no_net_are_refused(values: dict, message: str) -> None:
    part = {"path": QUERY, "channels": 8, "depth": 1, "cond_emb_dim": 4, "mlp_dim": 4}
    with pytest.raises(CldmError, match=message):
        LLLiteConfig.from_dict({"modules": [{**part, **values}]})
    for modules in ([], None, 5, [5], [part, part]):
        with pytest.raises(CldmError):
            LLLiteConfig.from_dict({"modules": modules})
