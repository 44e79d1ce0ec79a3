"""Loaded networks: read safely, loaded once, filled only with what fits."""

import re
import sys

import numpy as np
import pytest
import torch
from torch import nn

from controlnet_pack.annotators import AnnotatorError, Weights, keeper
from controlnet_pack.annotators.nets.frames import as_array, as_tensor, padded

NET = Weights("someone/nets", "net.pth", "main", None, None, "MIT", True)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x)


def build(tensors):
    build.calls += 1
    with torch.device("meta"):
        net = Net()
    return keeper.fill(net, tensors)


@pytest.fixture(autouse=True)
def _fresh(no_network):
    build.calls = 0


def test_a_network_has_the_file_s_tensors_and_no_gradients(give):
    tensors = Net().state_dict()
    give(NET, tensors)
    with keeper.network(NET, build, "cpu") as net:
        assert torch.equal(net.conv.weight, tensors["conv.weight"])
        assert not net(torch.zeros(1, 3, 4, 4)).requires_grad
        assert not net.training


def test_the_second_time_nothing_is_loaded(give):
    give(NET, Net().state_dict())
    for _ in range(3):
        with keeper.network(NET, build, "cpu") as net:
            pass
    assert build.calls == 1
    give(NET, {name: value + 1 for name, value in net.state_dict().items()})
    with keeper.network(NET, build, "cpu") as other:
        assert other is not net
    assert build.calls == 2


def test_the_oldest_goes():
    kept = keeper.Kept(most=2)
    made = []
    for key in ("a", "b", "a", "c", "a", "b"):
        kept.thing(key, lambda key=key: made.append(key) or key)
    assert made == ["a", "b", "c", "b"]


@pytest.mark.parametrize("wrap", [
    lambda tensors: tensors,
    lambda tensors: {"state_dict": tensors, "epoch": 3},
    lambda tensors: {"model": {f"module.{name}": value for name, value in tensors.items()}},
])  # fmt: skip
def test_checkpoints_may_be_wrapped(tmp_path, wrap):
    tensors = Net().state_dict()
    torch.save(wrap(tensors), tmp_path / "net.pth")
    found = keeper.tensors_of(tmp_path / "net.pth")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_no_code_of_a_checkpoint_is_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return print, ("it ran",)

    path = tmp_path / "net.pth"
    torch.save({"conv": Bomb()}, path)
    with pytest.raises(AnnotatorError, match="holds more than tensors, which is not loaded"):
        keeper.tensors_of(path)


@pytest.mark.parametrize("name", ["net.pth", "net.safetensors"])
def test_a_damaged_file(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"PK\3\4 and then nothing")
    with pytest.raises(AnnotatorError, match=f"^{re.escape(str(path))} can't be read as weights"):
        keeper.tensors_of(path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t: t.pop("conv.bias"), "The file of weights lacks conv.bias: another file?"),
        (lambda t: t.update(a=t["conv.bias"], b=t["conv.bias"]),
         "The file of weights has an unknown a and 1 more: another file?"),
        (lambda t: t.update({"conv.bias": torch.zeros(4)}),
         "conv.bias has the shape (4,) in the file of weights, expected (3,): another file?"),
    ],
)  # fmt: skip
def test_a_file_for_another_network(change, sentence):
    tensors = dict(Net().state_dict())
    change(tensors)
    with pytest.raises(AnnotatorError, match=f"^{re.escape(sentence)}$"):
        build(tensors)


def test_half_precision_is_widened_and_unused_parts_are_left_out():
    tensors = {name: value.half() for name, value in Net().state_dict().items()}
    net = keeper.fill(Net(), {**tensors, "head.weight": torch.zeros(1)}, unused=("head.",))
    assert net.conv.weight.dtype == torch.float32


def test_a_missing_runtime_names_the_line_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    refused = pytest.raises(AnnotatorError, match=r"Install it with: pip install onnxruntime$")
    with refused, keeper.session(NET):
        pass


def test_pictures_go_in_and_out_as_they_are():
    images = np.random.default_rng(0).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    assert np.array_equal(as_array(as_tensor(images, Net())), images.astype(np.float32))


def test_padding_repeats_the_edge_and_is_cut_off():
    seen = []

    def call(x):
        seen.append(x)
        return x * 2

    images = torch.arange(2 * 3 * 5 * 7, dtype=torch.float32).reshape(2, 3, 5, 7)
    assert torch.equal(padded(call, images, 8), images * 2)
    (inside,) = seen
    assert inside.shape == (2, 3, 8, 8)
    assert torch.equal(inside[..., 7, :7], images[..., 4, :])
