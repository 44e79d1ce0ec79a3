"""What files of base models say that they predict."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from controlnet_pack.cldm_core import TINY, ControlledUNet, DamagedCheckpoint, UnsupportedCheckpoint
from controlnet_pack.cldm_core.checkpoint import config_metadata
from controlnet_pack.cldm_core.checkpoint.read import Checkpoint
from controlnet_pack.cldm_core.predictions import file_prediction, scheduler_prediction

SPEC = "modelspec.prediction_type"
# As runwayml's and Stability AI's repositories have it.
SCHEDULER = {
    "_class_name": "PNDMScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "num_train_timesteps": 1000,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def checkpoint(*keys: str, stored: str | None = None, **metadata: str) -> Checkpoint:
    with torch.device("meta"):
        state = ControlledUNet(TINY).state_dict()
    own = {} if stored is None else config_metadata(replace(TINY, prediction=stored))
    marks = dict.fromkeys(keys, torch.zeros(0))
    return Checkpoint({**state, **marks}, {**own, **metadata}, "a.safetensors")


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({**SCHEDULER, **changes}))
    return path


@pytest.mark.parametrize(
    ("file", "expected"),
    [
        (checkpoint(), None),
        (checkpoint("v_pred"), "v"),
        (checkpoint(stored="eps"), "eps"),
        (checkpoint(stored="v"), "v"),
        (checkpoint("v_pred", stored="eps"), "v"),
        (checkpoint(**{SPEC: "epsilon"}), "eps"),
        (checkpoint(**{SPEC: "v"}), "v"),
        (checkpoint(**{SPEC: "flow"}), None),
    ],
    ids=["nothing", "key", "eps", "v", "key first", "spec eps", "spec v", "spec other"],
)
def test_a_file_says_it_or_does_not(file: Checkpoint, expected: str | None) -> None:
    assert file_prediction(file) == expected


@pytest.mark.parametrize("key", ["ztsnr", "edm_mean", "edm_vpred.sigma_max"])
def test_files_of_other_noise_are_refused(key: str) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=f"^a.safetensors has the key {key}, and only"):
        file_prediction(checkpoint("v_pred", key))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "eps"),
        ({"prediction_type": "epsilon"}, "eps"),
        ({"prediction_type": "v_prediction", "rescale_betas_zero_snr": False}, "v"),
    ],
    ids=["older", "epsilon", "v"],
)
def test_a_scheduler_says_it(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    assert scheduler_prediction(write(tmp_path / "scheduler_config.json", **changes)) == expected


def test_without_a_scheduler_nothing_is_said(tmp_path: Path) -> None:
    assert scheduler_prediction(tmp_path / "scheduler_config.json") is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prediction_type": "sample"}, "predicts 'sample', expected epsilon or v_prediction"),
        ({"prediction_type": ["v"]}, "predicts .'v'., expected epsilon"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr true, expected false"),
        ({"beta_schedule": "linear"}, 'beta_schedule "linear", expected "scaled_linear"'),
        ({"beta_end": None}, "beta_end null, expected 0.012"),
        ({"trained_betas": [0.1]}, r"trained_betas \[0.1\], expected null"),
        ({"num_train_timesteps": 50}, "num_train_timesteps 50, expected 1000"),
    ],
)
def test_other_schedulers_are_refused(
    tmp_path: Path, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(UnsupportedCheckpoint, match=told):
        scheduler_prediction(write(tmp_path / "scheduler_config.json", **changes))


@pytest.mark.parametrize("text", ["{", "[]", "\ud800"])
def test_damaged_schedulers_are_told(tmp_path: Path, text: str) -> None:
    path = tmp_path / "scheduler_config.json"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(DamagedCheckpoint, match="download the base model again"):
        scheduler_prediction(path)
