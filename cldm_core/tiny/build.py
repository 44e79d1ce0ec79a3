"""Trains the embedded model from its public pictures: `python -m cldm_core.tiny.build --help`."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..controlnet import ControlNet
from ..hooks import named_function
from ..metrics import Array, edge_f1, mask_iou
from ..pipeline import Picture, Pipeline
from . import WEIGHTS, ScaledVAE
from .cache import Cache, HintOf, build_cache
from .data import Emoji, load_emoji, split
from .export import export
from .report import write_report
from .stage_control import CANNY_PLAN, MASK_PLAN, Task, train_control
from .stage_unet import TextToLatents, train_unet
from .stage_vae import train_vae
from .text import build_tokenizer, load_tokenizer, tokenize
from .vae import TinyVAE

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import CLIPTokenizer

log = logging.getLogger("cldm_core")


def eight_bit(picture: Array) -> Picture:
    """[0, 1] to uint8."""
    return np.asarray((picture * 255).round().clip(0, 255), dtype=np.uint8)


def tasks() -> list[Task]:
    """The embedded ControlNets, with the annotators that make their hints."""
    canny, mask = named_function("annotators:canny"), named_function("annotators:mask")
    return [
        Task("canny", canny, edge_f1, CANNY_PLAN),
        Task("mask", mask, mask_iou, MASK_PLAN),
    ]


@dataclass
class Build:
    """All stages; each is trained, or read back from `folder`, when it is first asked for."""

    pictures: Path
    keywords: Path
    folder: Path
    device: torch.device

    @cached_property
    def emoji(self) -> tuple[list[Emoji], list[Emoji]]:
        return split(load_emoji(self.pictures, self.keywords))

    @cached_property
    def tokenizer(self) -> CLIPTokenizer:
        if not (WEIGHTS / "vocab.json").exists():
            words = (word for emoji in self.emoji[0] for word in emoji.words if word.isascii())
            build_tokenizer(words, WEIGHTS)
        return load_tokenizer(WEIGHTS)

    @cached_property
    def vae(self) -> TinyVAE:
        training, held_out = self.emoji
        return train_vae(training, held_out, self.folder, self.device)

    @cached_property
    def cache(self) -> Cache:
        # The mask comes from the picture's own transparency here; what users draw goes through
        # annotators:mask.
        hints: dict[str, HintOf] = {
            "canny": lambda picture, _: named_function("annotators:canny")(eight_bit(picture))[
                ..., 0
            ],
            "mask": lambda _, foreground: eight_bit(np.asarray(foreground > 0.5, dtype=np.float32)),
        }
        path = self.folder / "cache.safetensors"
        return build_cache(self.emoji[0], self.vae, hints, path).to(self.device)

    @cached_property
    def nets(self) -> TextToLatents:
        return train_unet(self.emoji[0], self.cache, self.tokenizer, self.folder)

    @cached_property
    def pipeline(self) -> Pipeline:
        def encode_text(prompts: Sequence[str]) -> Tensor:
            tokens = tokenize(self.tokenizer, prompts).to(self.device)
            embeddings: Tensor = self.nets.text(tokens).last_hidden_state
            return embeddings

        return Pipeline(self.nets.unet, ScaledVAE(self.vae, self.cache.scale), encode_text)

    def control(self, task: Task) -> ControlNet:
        training, held_out = self.emoji
        return train_control(
            task,
            training,
            held_out,
            self.cache,
            self.nets,
            self.tokenizer,
            self.pipeline,
            self.folder,
        )

    def train(self) -> None:
        """Trains what isn't trained yet, and writes the weights."""
        controls = {task.name: self.control(task) for task in tasks()}
        export(WEIGHTS, self.vae, self.nets, controls, self.cache, self.emoji[0])

    def measure(self) -> None:
        """Measures the weights as written, on the CPU, and writes the card."""
        figures = write_report(self.folder, self.emoji[1], tasks())
        log.info("%s", json.dumps(figures, indent=1))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cldm_core.tiny.build",
        description="Trains the embedded model: autoencoder, UNet with text encoder, two "
        "ControlNets. Writes the weights and the figures of the model card. A run that was stopped "
        "goes on where its last checkpoint was.",
    )
    pictures = "npm package @lobehub/fluent-emoji-3d 1.1.0, .tgz"
    parser.add_argument("--pictures", type=Path, required=True, help=pictures)
    keywords = "npm package emojilib 4.0.3, .tgz"
    parser.add_argument("--keywords", type=Path, required=True, help=keywords)
    folder = "checkpoints and records of the stages"
    parser.add_argument("--folder", type=Path, required=True, help=folder)
    parser.add_argument("--device", default="cpu", help="where to train (default: cpu)")
    only = "only one of the two: train and write the weights, or measure the weights as they are"
    parser.add_argument("--only", choices=("train", "measure"), help=only)
    parser.add_argument("--threads", type=int, help="CPU threads (default: PyTorch's choice)")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    arguments = make_parser().parse_args(argv)
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    device = torch.device(arguments.device)
    # cuDNN times its kernels once: every step has the same shapes.
    torch.backends.cudnn.benchmark = True
    build = Build(arguments.pictures, arguments.keywords, arguments.folder, device)
    if arguments.only != "measure":
        build.train()
    if arguments.only != "train":
        build.measure()


if __name__ == "__main__":
    main()
