"""Arithmetic of applied control on a GPU: equal to the CPU's."""

import pytest
import torch

from controlnet_pack.cldm_core import TINY, ControlNet, ControlNetConfig, Residuals
from controlnet_pack.cldm_core.fitting import FITS, fit_hint
from controlnet_pack.cldm_core.masks import mask_residuals
from controlnet_pack.cldm_core.record import ControlRecord
from controlnet_pack.cldm_core.residuals import (
    relative_change,
    resample,
    spread_rows,
    weigh,
    weigh_rows,
)

from .cases import weighted

pytestmark = pytest.mark.cuda
DEVICE = "cuda"
SIZES = ((8, 8), (4, 4), (4, 4))


def residuals(device: str, rows: int = 2) -> Residuals:
    torch.manual_seed(1)
    items = [torch.randn(rows, 6, *size) for size in SIZES]
    return Residuals((items[0].to(device), items[1].to(device)), (items[2].to(device),))


CHANGES = {
    "weights": lambda found: weigh(found, (0.5, 0.0, 1.0)),
    "rows": lambda found: weigh_rows(found, torch.tensor([1.0, 0.25])),
    "spread": lambda found: spread_rows(found, (0, 3), 4),
    "resampled": lambda found: resample(found, ((6, 10), (3, 5), (3, 5))),
    "masked": lambda found: mask_residuals(found, torch.linspace(0, 1, 256).reshape(1, 16, 16)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changes_of_residuals(change) -> None:
    expected, found = change(residuals("cpu")), change(residuals(DEVICE))
    for a, b in zip(
        (*expected.output, *expected.middle), (*found.output, *found.middle), strict=True
    ):
        assert b.device.type == DEVICE
        assert torch.allclose(a, b.cpu(), atol=1e-6)


def test_drift_and_record() -> None:
    old, new = residuals(DEVICE), weigh(residuals(DEVICE), 1.25)
    assert relative_change(new, old) == pytest.approx(0.2, rel=1e-5)
    record = ControlRecord()
    record.note(name="a", net="b", step=0, sigma=1.0, strength=1.0, residuals=new)
    expected = float(new.middle[0].square().mean().sqrt())
    assert record.nets[0].steps[0].blocks["middle"].rms == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("fit", FITS)
def test_hints_are_fitted_alike(fit: str) -> None:
    pytest.importorskip("cv2", reason="drawings are thinned by OpenCV")
    torch.manual_seed(2)
    photo = torch.rand(1, 3, 40, 64)
    drawing = torch.zeros(1, 3, 64, 64)
    drawing[:, :, 20, 5:50] = 1
    for hint in (photo, drawing):
        found = fit_hint(hint.to(DEVICE), 96, 72, fit=fit)
        assert found.device.type == DEVICE
        assert torch.allclose(fit_hint(hint, 96, 72, fit=fit), found.cpu(), atol=1e-5)


def test_several_texts_are_those_of_the_rows() -> None:
    net = weighted(ControlNet(ControlNetConfig(TINY)), 3).to(DEVICE)
    x, context = torch.randn(1, 4, 8, 8, device=DEVICE), torch.randn(2, 5, 128, device=DEVICE)
    times = torch.tensor([500.0], device=DEVICE)
    features = net.encode_hint(torch.rand(1, 3, 64, 64, device=DEVICE))
    together = net(x, features, times, context)
    rows = net(x.repeat(2, 1, 1, 1), features, times, context)
    for a, b in zip(
        (*together.output, *together.middle), (*rows.output, *rows.middle), strict=True
    ):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))
