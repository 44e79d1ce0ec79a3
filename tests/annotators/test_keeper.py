"""Loaded networks: read safely, loaded once, filled only with what fits."""

import re
import sys
import threading
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from controlnet_pack.annotators import AnnotatorError, Weights, annotate, keeper
from controlnet_pack.annotators.base import needed
from controlnet_pack.annotators.nets.frames import as_array, as_tensor, padded
from controlnet_pack.annotators.weights import given

from . import tiny_onnx

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


def test_a_broken_package_names_the_line_that_mends_it(tmp_path, monkeypatch):
    why = "numpy.dtype size changed, may indicate binary incompatibility"
    (tmp_path / "broken_package.py").write_text(f"raise ValueError({why!r})")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(AnnotatorError) as caught:
        needed("broken_package", to_install="broken-package", by="The test")
    assert str(caught.value) == (
        f"The test needs the package broken-package, which can't be imported ({why}). "
        "Mend it with: pip install --upgrade --force-reinstall --no-deps broken-package"
    )


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cpu:x"])
@pytest.mark.parametrize("name", ["hed", "dwpose"])
def test_a_device_that_is_not_here_is_told_before_anything_is_fetched(no_network, device, name):
    if name == "dwpose":
        pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    with pytest.raises(AnnotatorError) as caught:
        annotate(name, np.zeros((8, 8, 3), np.uint8), device=device)
    sentence = f"The device {device!r} can't be used here. There is: cpu"
    assert str(caught.value).startswith(sentence)


def test_a_device_that_is_here_is_taken():
    assert keeper.best_device("cpu") == torch.device("cpu")
    assert keeper.best_device(torch.device("cpu")) == torch.device("cpu")


@pytest.fixture
def runtime(monkeypatch, tmp_path) -> list:
    """Stands in for onnxruntime with CUDA; gives the providers of each session made."""
    made = []

    def session(path, providers):
        made.append(providers)
        return object()

    both = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    there = SimpleNamespace(InferenceSession=session, get_available_providers=lambda: both)
    monkeypatch.setitem(sys.modules, "onnxruntime", there)
    monkeypatch.setattr(keeper, "best_device", torch.device)
    (tmp_path / "net.onnx").write_bytes(b"12345")
    with given(NET, tmp_path / "net.onnx"):
        yield made


def test_a_session_runs_on_the_card_that_is_named(runtime):
    sessions = []
    for device in ("cuda:1", "cuda:0", "cuda", "cpu", "cuda:1"):
        with keeper.session(NET, device) as one:
            sessions.append(one)
    on = [("CUDAExecutionProvider", {"device_id": number}) for number in (1, 0)]
    cpu = "CPUExecutionProvider"
    assert runtime == [[on[0], cpu], [on[1], cpu], [cpu]]
    assert sessions[0] is sessions[4]
    assert sessions[1] is sessions[2]


def test_the_keeper_is_told_how_large_a_session_is(runtime):
    told = []

    class Noting(keeper.Kept):
        def kept(self, key, build, device, size=0):
            told.append((str(device), size))
            return super().kept(key, build, device, size)

    keeper.use(Noting())
    for device in ("cuda:1", "cpu", "mps"):
        with keeper.session(NET, device):
            pass
    assert told == [("cuda:1", 5), ("cpu", 5), ("mps", 0)]


def test_a_real_session_is_made_once_and_gives_what_the_file_says(tmp_path):
    pytest.importorskip("onnxruntime", reason="needs onnxruntime")
    pixels = np.random.default_rng(0).random((3, 2, 4, 5), np.float32)
    with given(NET, tiny_onnx.write(tmp_path / "net.onnx")):
        with keeper.session(NET, "cpu") as one:
            (found,) = one.run(None, {one.get_inputs()[0].name: pixels})
            assert one.get_inputs()[0].shape[0] == "batch"
        with keeper.session(NET, "cpu") as again:
            assert again is one
    assert np.array_equal(found, pixels)


def test_two_threads_load_a_network_once_and_use_it_one_after_the_other():
    kept, made, inside, most = keeper.Kept(), [], [], []
    both_start = threading.Barrier(2)

    def use():
        both_start.wait()
        with kept.kept("net", lambda: made.append(1) or object(), "cpu"):
            inside.append(1)
            most.append(len(inside))
            threading.Event().wait(0.05)  # time for the other one to come in as well
            inside.pop()

    threads = [threading.Thread(target=use) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert made == [1]
    assert most == [1, 1]


def test_one_thread_may_use_two_networks_together():
    kept = keeper.Kept()
    with ExitStack() as stack:
        found = [stack.enter_context(kept.kept(key, object, "cpu")) for key in "ab"]
    assert found[0] is not found[1]


@pytest.mark.parametrize(("device", "counts"), [("cpu", [1, 1, 1]), ("meta", [3])])
def test_a_batch_goes_whole_to_accelerators_only(device, counts):
    told = []

    def net(frames):
        told.append(len(frames))
        return frames

    assert keeper.outputs(net, torch.zeros(3, 1, 2, 2, device=device)).shape == (3, 1, 2, 2)
    assert told == counts


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
