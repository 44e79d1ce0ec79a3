"""A host with other packs in it: what prompts make there, and what is left behind."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode

import numpy as np
import safetensors.torch
import torch
from safetensors.torch import save_file
from torch import Tensor

from controlnet_pack.cldm_core import ControlNet, ControlNetConfig, UNetConfig, tiny
from controlnet_pack.cldm_core.checkpoint import read
from controlnet_pack.cldm_core.t2i_adapter import AdapterConfig, T2IAdapter

from ..cldm_core.seeded import seeded_module
from .client import HostClient, Result
from .conftest import advanced_controlnet
from .graphs import SAMPLER, put, without
from .hosts import PACK_NAME, HostInstall, install_pack
from .prompts import Prompt, node_id
from .server import HostServer

ADVANCED, BESIDE = "ComfyUI-Advanced-ControlNet", "beside.py"
LORA = "drawn.safetensors"
SIZE = 128
NARROW = UNetConfig.from_params(
    {
        "model_channels": 64,
        "attention_resolutions": (4, 2, 1),
        "num_res_blocks": 2,
        "channel_mult": (1, 2, 4, 4),
        "num_head_channels": 64,
        "context_dim": 128,
        "use_spatial_transformer": True,
        "legacy": False,
    }
)
"""SD 1.5's shape, a fifth as wide: that of TestLoadSmallModel, for adapters."""


@contextmanager
def beside(install: HostInstall, folder: Path) -> Iterator[HostServer]:
    """A running host with the tests' own nodes, and Advanced-ControlNet where it is found."""
    names = (PACK_NAME, BESIDE, ADVANCED)
    host = HostServer(install, folder, flags=("--whitelist-custom-nodes", *names))
    packs = host.base / "custom_nodes"
    install_pack(packs, Path(__file__).parent / "inside" / BESIDE, BESIDE)
    if found := advanced_controlnet(install):
        install_pack(packs, Path(found), ADVANCED)
    write_models(host)
    with host:
        yield host


def write_models(host: HostServer) -> None:
    """Nets for both base models, and a LoRA."""
    nets = host.models("controlnet")
    shutil.copy(tiny.weights("canny"), nets / "canny.safetensors")
    narrow = seeded_module(ControlNet, ControlNetConfig(NARROW), 3)
    adapter = seeded_module(T2IAdapter, AdapterConfig(channels=(64, 128, 256, 256)), 3)
    for name, net in {"narrow": narrow, "adapter": adapter}.items():
        save_file(net.state_dict(), nets / f"{name}.safetensors")
    generator = torch.Generator().manual_seed(5)
    lora = {}
    for key, value in read(tiny.weights("unet")).tensors.items():
        if value.ndim == 2:
            name = f"diffusion_model.{key.removesuffix('.weight')}"
            sizes = {"up": (len(value), 2), "down": (2, value.shape[1])}
            for part, size in sizes.items():
                lora[f"{name}.lora_{part}.weight"] = torch.randn(size, generator=generator) / 6
    save_file(lora, host.models("loras") / LORA)


@dataclass(frozen=True)
class Done:
    """A prompt that ended well: its pictures, what its controls told, and what the host logged."""

    result: Result
    pictures: list[np.ndarray]
    log: str

    @property
    def picture(self) -> np.ndarray:
        (picture,) = self.pictures
        return picture

    @property
    def report(self) -> str:
        """What was told of the only control."""
        ((report,),) = self.result.applied.values()
        return report

    @property
    def rows(self) -> tuple[int, int]:
        """With control and left out; (0, 0) where none is left out, as this isn't told."""
        return numbers(r"rows: (\d+) with control, (\d+) left out and not computed", self.report)

    @property
    def steps(self) -> tuple[int, int]:
        """At how many steps the control acted, and how many there were."""
        return numbers(r"steps: on at (\d+) of (\d+)", self.report)


def numbers(pattern: str, text: str) -> tuple[int, int]:
    """The two numbers that a pattern finds in a text, zeros where it finds nothing."""
    found = re.search(pattern, text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def apart(first: np.ndarray, second: np.ndarray) -> int:
    """The largest difference of two pictures, of 255."""
    return int(np.abs(first.astype(int) - second).max())


@dataclass(frozen=True)
class Bench:
    """A host with other packs in it, and the first pictures that it made."""

    host: HostServer
    first: Mapping[str, np.ndarray]

    @property
    def client(self) -> HostClient:
        return self.host.client

    def run(self, prompt: Prompt) -> Done:
        start = len(self.host.log())
        result = self.client.queue(prompt)
        assert result.status == "success", result.message()
        saved = [key for key, node in prompt.items() if node["class_type"] == "SaveImage"]
        pictures = [picture for key in saved for picture in self.client.images(result, key)]
        return Done(result, pictures, self.host.log(start))

    def latents(self, prompt: Prompt) -> Tensor:
        """The latents (B, C, h, w) that a prompt's sampler gives."""
        changed = without(prompt, "SaveImage")
        source = [node_id(changed, SAMPLER), 0]
        number = put(changed, "SaveLatent", samples=source, filename_prefix="beside")
        (record,) = self.run(changed).result.outputs[number]["latents"]
        path = f"/view?{urlencode(record)}"
        return safetensors.torch.load(self.client.read(path))["latent_tensor"]

    def remains(self, prompt: Prompt) -> dict[str, int]:
        """What controls and models hold now, counted; a prompt's nodes stay in the host's cache."""
        changed = without(prompt, "SaveImage")
        number = put(changed, "TestShowRemains")
        (text,) = self.run(changed).result.texts(number)
        found: dict[str, int] = json.loads(text)
        return found

    def rings(self, *radii: int) -> str:
        """An input picture of 128 pixels with rings side by side, as an edge map; its name."""
        width = SIZE // len(radii)
        rows, columns = np.mgrid[:SIZE, :width] + 0.5
        from_centre = np.hypot(rows - SIZE / 2, columns - width / 2)
        drawn = np.concatenate([np.abs(from_centre - radius) < 1 for radius in radii], axis=1)
        name = f"rings {' '.join(map(str, radii))}.png"
        return self.host.save_input(name, np.repeat(drawn[..., None], 3, axis=2).astype(float))

    def halves(self, size: int) -> str:
        """An input picture, white on the left and black on the right; its name."""
        drawn = np.zeros((size, size, 3))
        drawn[:, : size // 2] = 1
        return self.host.save_input(f"halves {size}.png", drawn)
