"""The embedded model's text encoder: a small CLIP over its own byte-pair vocabulary.

The tokenizer's files are CLIP's format, so transformers' CLIPTokenizer reads them, and so does the
host.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

if TYPE_CHECKING:
    from transformers import CLIPTextModel, CLIPTokenizer

LENGTH = 32
VOCABULARY = 1280
PREFIX = "text_model."
START, END = "<|startoftext|>", "<|endoftext|>"

# As in CLIP's config.json; the host's CLIPTextModel reads the same names.
CONFIG: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 512,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": LENGTH,
    "hidden_act": "quick_gelu",
    "projection_dim": 128,
    "bos_token_id": VOCABULARY - 2,
    "eos_token_id": VOCABULARY - 1,
    "pad_token_id": VOCABULARY - 1,
}


def build_tokenizer(texts: Iterable[str], folder: Path) -> None:
    """Learns the byte-pair merges from `texts` and writes folder/vocab.json and merges.txt."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    # The trainer counts single characters with and without the suffix too; merges beyond the
    # vocabulary are cut below.
    trainer = trainers.BpeTrainer(
        vocab_size=2 * VOCABULARY,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.lower() for text in texts), trainer)
    single = [*alphabet, *(character + "</w>" for character in alphabet)]
    learned = json.loads(tokenizer.to_str())["model"]["merges"][: VOCABULARY - 2 - len(single)]
    tokens = [*single, *("".join(pair) for pair in learned), START, END]
    folder.mkdir(parents=True, exist_ok=True)
    table = {token: index for index, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(
        json.dumps(table, ensure_ascii=False, separators=(",", ":")), encoding="utf-8"
    )
    lines = ["#version: 0.2", *(" ".join(pair) for pair in learned), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The CLIPTokenizer over folder/vocab.json and merges.txt."""
    from transformers import CLIPTokenizer

    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(str(folder), model_max_length=LENGTH)
    return tokenizer


def new_text_encoder() -> CLIPTextModel:
    """A CLIP text transformer of this size, with fresh weights."""
    from transformers import CLIPTextConfig, CLIPTextModel

    return CLIPTextModel(CLIPTextConfig(**CONFIG))


def load_text_encoder(tensors: Mapping[str, Tensor]) -> CLIPTextModel:
    """The trained text encoder in fp32, from the names of public checkpoints (`text_model.*`)."""
    model = new_text_encoder()
    own = model.state_dict()
    # transformers 5 dropped the wrapper that gave the names their first part.
    strip = PREFIX if not any(key.startswith(PREFIX) for key in own) else ""
    model.load_state_dict(
        {key.removeprefix(strip): value.float() for key, value in tensors.items()}
    )
    model.eval().requires_grad_(False)
    return model


def public_names(model: CLIPTextModel) -> dict[str, Tensor]:
    """The text encoder's tensors under `text_model.*`, whichever transformers built it."""
    return {PREFIX + key.removeprefix(PREFIX): value for key, value in model.state_dict().items()}


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Token ids (B, LENGTH), cut or padded with the end token as Stable Diffusion 1 does."""
    batch = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=LENGTH, return_tensors="pt"
    )
    ids: Tensor = batch.input_ids
    return ids
