"""What files of base models say that they predict: noise (eps) or velocity (v).

Keys and shapes of the weights don't tell it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .checkpoint.load import V_KEY, stored_unet
from .checkpoint.read import Checkpoint
from .config import Prediction
from .diffusion import NoiseSchedule
from .errors import DamagedCheckpoint, UnsupportedCheckpoint

OTHER_NOISE = ("ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max")
"""Keys of single files whose noise isn't Stable Diffusion's: zero terminal SNR, and EDM."""
SPEC_KEY = "modelspec.prediction_type"
NAMES: dict[str, Prediction] = {"epsilon": "eps", "v": "v", "v_prediction": "v"}
REFUSAL = (
    "only Stable Diffusion's own noise schedule can be trained and sampled with: take a base model "
    "without zero terminal SNR and without EDM."
)


def file_prediction(checkpoint: Checkpoint) -> Prediction | None:
    """What a whole checkpoint or a UNet's file says; None where it says nothing.

    It is told by a tensor `v_pred`, which ComfyUI looks for (comfy/supported_models.py), by the
    configuration that this core writes, or by modelspec's metadata. Raises UnsupportedCheckpoint
    where the file tells of another noise schedule.
    """
    other = next((key for key in OTHER_NOISE if key in checkpoint.tensors), None)
    if other is not None:
        raise UnsupportedCheckpoint(f"{checkpoint.name} has the key {other}, and {REFUSAL}")
    if V_KEY in checkpoint.tensors:
        return "v"
    stored = stored_unet(checkpoint)
    if stored is not None:
        return stored.prediction
    return NAMES.get(checkpoint.metadata.get(SPEC_KEY, ""))


def scheduler_prediction(path: Path) -> Prediction | None:
    """What a scheduler_config.json of diffusers says; None where there is no such file.

    Raises UnsupportedCheckpoint where it tells of another prediction or noise schedule, and
    DamagedCheckpoint where it can't be read.
    """
    if not path.is_file():
        return None
    values = _read(path)
    # In diffusers all schedulers take epsilon where nothing is said.
    named = values.get("prediction_type", "epsilon")
    prediction = NAMES.get(str(named))
    if prediction is None:
        raise UnsupportedCheckpoint(
            f"{path} says that the model predicts {named!r}, expected epsilon or v_prediction: "
            f"take another base model."
        )
    _require_schedule(values, path)
    return prediction


def _require_schedule(values: dict[str, Any], path: Path) -> None:
    known = NoiseSchedule()
    expected = {
        "beta_schedule": "scaled_linear",
        "beta_start": known.linear_start,
        "beta_end": known.linear_end,
    }
    expected_or_absent = {
        "num_train_timesteps": known.timesteps,
        "trained_betas": None,
        "rescale_betas_zero_snr": False,
    }
    found = {name: values.get(name) for name in expected}
    found |= {name: values.get(name, wanted) for name, wanted in expected_or_absent.items()}
    for name, wanted in {**expected, **expected_or_absent}.items():
        if found[name] != wanted:
            raise UnsupportedCheckpoint(
                f"{path} has {name} {json.dumps(found[name])}, expected {json.dumps(wanted)}, and "
                f"{REFUSAL}"
            )


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DamagedCheckpoint(
            f"{path} can't be read ({error}): download the base model again."
        ) from error
    if not isinstance(values, dict):
        raise DamagedCheckpoint(f"{path} holds no JSON object: download the base model again.")
    return values
