"""Configurations from the original's YAML mappings."""

from dataclasses import replace
from typing import Any

import pytest

from controlnet_pack.cldm_core import (
    SD15,
    SD21,
    CldmError,
    ControlNet,
    ControlNetConfig,
    UNetConfig,
)

V15: dict[str, Any] = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
    "num_heads": 8,
    "use_spatial_transformer": True,
    "transformer_depth": 1,
    "context_dim": 768,
    "use_checkpoint": True,
    "legacy": False,
}
V21 = {key: value for key, value in V15.items() if key != "num_heads"} | {
    "num_head_channels": 64,
    "use_linear_in_transformer": True,
    "context_dim": 1024,
}


def test_the_published_mappings_give_the_published_families() -> None:
    assert UNetConfig.from_params(V15) == SD15
    assert UNetConfig.from_params(V21) == SD21
    control = {key: value for key, value in V15.items() if key != "out_channels"}
    found = ControlNetConfig.from_params({**control, "hint_channels": 3})
    assert found == ControlNetConfig(SD15)


def test_attention_follows_resolutions_blocks_and_depths() -> None:
    config = UNetConfig.from_params(
        {**V15, "attention_resolutions": [8, 1], "num_res_blocks": [1, 2, 1, 2],
         "transformer_depth": [1, 2, 3, 4], "num_attention_blocks": [1, 1, 1, 1]}
    )  # fmt: skip
    assert config.num_res_blocks == (1, 2, 1, 2)
    assert config.transformer_depth == (1, 0, 0, 0, 4, 0)
    assert config.transformer_depth_output == (4, 0, 0, 0, 0, 0, 0, 0, 1, 0)
    assert config.transformer_depth_middle == 4


@pytest.mark.parametrize(
    ("changes", "heads"),
    [
        ({}, (8, 12)),
        ({"num_head_channels": 32}, (3, 32)),
        ({"num_head_channels": 40}, (2, 40)),
        ({"num_head_channels": 40, "legacy": True}, (2, 48)),
        ({"num_heads": 5}, (5, 19)),
    ],
)
def test_heads_of_96_channels(changes: dict[str, Any], heads: tuple[int, int]) -> None:
    assert UNetConfig.from_params({**V15, **changes}).heads(96) == heads


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"colour": 1}, "unknown parameters colour"),
        ({"dims": 3}, "only pictures"),
        ({"use_spatial_transformer": False}, "only UNets with text cross-attention"),
        ({"num_res_blocks": [2, 2]}, "2 entries for 4 levels"),
        ({"num_heads": -1}, "give one of them"),
        ({"context_dim": None}, "expected the width of the text embeddings"),
        ({"n_embed": 100}, "nets that predict codebook entries aren't supported"),
        ({"transformer_depth_output": [1]}, "unknown parameters transformer_depth_output"),
        ({"model_channels": 100}, "a level is 100 wide, no multiple of 32"),
        ({"num_classes": 1000}, "expected none or 'sequential'"),
        ({"num_classes": "sequential"}, "give both or none"),
    ],
)
def test_what_does_not_fit_is_named(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CldmError, match=sentence):
        UNetConfig.from_params({**V15, **changes})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_head_channels", 0),
        ("num_head_channels", None),
        ("model_channels", "320"),
        ("model_channels", -32),
        ("channel_mult", 4),
        ("channel_mult", "1,2"),
        ("channel_mult", []),
        ("channel_mult", [1, "2", 4, 4]),
        ("channel_mult", [1, 2, 0, 4]),
        ("num_res_blocks", 2.0),
        ("num_res_blocks", "2222"),
        ("num_res_blocks", [2, 2, 2, [2]]),
        ("attention_resolutions", 4),
        ("attention_resolutions", None),
        ("attention_resolutions", "4,2,1"),
        ("attention_resolutions", [[4]]),
        ("transformer_depth", -1),
        ("transformer_depth", None),
        ("transformer_depth_middle", "1"),
        ("num_attention_blocks", [1, 1]),
        ("num_attention_blocks", "1111"),
        ("disable_self_attentions", [True]),
        ("disable_self_attentions", True),
        ("disable_self_attentions", [1, 2, 3, 4]),
        ("in_channels", 0),
        ("in_channels", "4"),
        ("context_dim", "768"),
        ("context_dim", []),
        ("context_dim", [[768]]),
        ("context_dim", 0),
        ("dropout", 2),
        ("dropout", "0"),
        ("legacy", "no"),
        ("prediction", "x"),
        ("prediction", ["v"]),
        ("hint_channels", 0),
        ("hint_channels", "3"),
        ("global_average_pooling", 1),
    ],
)
def test_values_that_fit_nothing_are_named(name: str, value: object) -> None:
    with pytest.raises(CldmError, match=f"{name} (is|has) "):
        ControlNetConfig.from_params({**V15, name: value})


@pytest.mark.parametrize("params", [None, 3, [1], {**V15, 3: 4}])
def test_what_is_no_mapping_of_parameters_is_refused(params: Any) -> None:
    with pytest.raises(CldmError, match=r"expected names with values|unknown parameters 3"):
        ControlNetConfig.from_params(params)
    with pytest.raises(CldmError, match=r"expected names with values|unknown parameters 3"):
        UNetConfig.from_params(params)


def test_any_sequence_of_a_yaml_loader_is_a_list() -> None:
    from collections import UserList

    lists = {k: UserList(v) for k, v in V15.items() if isinstance(v, list)}
    assert len(lists) == 2
    lists["context_dim"] = UserList([768])
    assert UNetConfig.from_params({**V15, **lists}) == SD15


def test_a_net_without_transformers_reads_no_text() -> None:
    without = {"transformer_depth": (0,) * 8, "transformer_depth_output": (0,) * 12}
    config = replace(SD15, **without, transformer_depth_middle=0, context_dim=None)
    assert UNetConfig.from_dict(config.to_dict()) == config
    with pytest.raises(CldmError, match="context_dim is none"):
        replace(SD15, context_dim=None)


@pytest.mark.parametrize(
    "record",
    [
        3,
        {"unet": 3},
        {"unet": {**SD15.to_dict(), "context_dim": "768"}},
        {"unet": {**SD15.to_dict(), "channel_mult": 4}},
        {"unet": {**SD15.to_dict(), "num_res_blocks": "2222"}},
        {"unet": SD15.to_dict(), "hint_channels": None},
        {"unet": SD15.to_dict(), "hint_channels": True},
    ],
)
def test_records_that_fit_nothing_are_refused(record: Any) -> None:
    with pytest.raises(CldmError, match="doesn't fit together"):
        ControlNetConfig.from_dict(record)


def test_a_transformer_too_narrow_for_a_head_is_refused() -> None:
    config = UNetConfig.from_params({**V15, "num_head_channels": 512})
    with pytest.raises(CldmError, match="a transformer is 320 wide, too narrow for num_heads -1"):
        ControlNet(ControlNetConfig(config))


def test_a_missing_parameter_is_named() -> None:
    with pytest.raises(CldmError, match="missing parameters model_channels"):
        UNetConfig.from_params({k: v for k, v in V15.items() if k != "model_channels"})


def test_records_survive_json() -> None:
    import json

    config = ControlNetConfig(SD21, hint_channels=6)
    assert ControlNetConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(CldmError, match="not the configuration of a ControlNet"):
        ControlNetConfig.from_dict({"hint_channels": 3})


def test_defaults_of_the_originals_constructor_may_be_written_out() -> None:
    written = {**V15, "n_embed": None, "dims": 2, "conv_resample": True, "num_heads_upsample": -1}
    assert UNetConfig.from_params(written) == UNetConfig.from_params(V15)
