"""Every setting of a training run; keys of the YAML file and flags have the same names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..errors import CldmError
from .options import checked, option, options_of, read_yaml

DATA, MODEL, STEPS, SPEED, SAVING, WATCHING = (
    "data",
    "model",
    "steps",
    "speed and memory",
    "saving",
    "watching",
)
CIRCLES, TINY, NONE = "circles", "tiny", "none"
ROLES = ("target", "hint", "prompt")


@dataclass(frozen=True)
class TrainConfig:
    """How one net is trained. Raises CldmError where a value, or two together, make no sense.

    Paths are relative to the current folder. batch_size counts pairs in one process: a step sees
    batch_size x accumulation x processes.
    """

    data: str = option(
        CIRCLES,
        DATA,
        "where the pairs are: prompt.json of the original, a folder of pictures, a Hugging Face "
        "image folder, a .tar file of webdataset or a folder of them, or circles for drawn ones",
    )
    conditioning: str | None = option(
        None,
        DATA,
        "folder of hints, where pictures lie in a folder; nothing looks for conditioning, "
        "conditioning_images, hints or source, inside or beside it",
    )
    columns: str | None = option(
        None, DATA, "names of a table's columns, such as hint=edges,prompt=caption"
    )
    circles: int = option(5000, DATA, "how many pairs the data set circles has", least=2)
    annotator: str | None = option(
        None,
        DATA,
        "MODULE:FUNCTION from picture to hint, such as annotators:canny: makes the hints of pairs "
        "without one, and scores how well held-out ones are followed",
    )
    resolution: int | None = option(
        None, DATA, "pixels along the side of a square; nothing is the base model's own", least=64
    )
    buckets: bool = option(False, DATA, "keep shapes: pictures of like aspect train together")
    crop: str = option(
        "middle",
        DATA,
        "which part of a picture is trained on; random is one of four places, which take turns",
        choices=("middle", "random"),
    )
    flip: bool = option(False, DATA, "mirror half of the pairs; not for hints with text or sides")
    drop_prompt: float = option(
        0.5, DATA, "share of prompts left empty, so that the hint has to tell", least=0, most=1
    )
    held_out: int = option(16, DATA, "pairs kept out of the training, to be scored", least=0)
    cache: str | None = option(
        None,
        DATA,
        "folder of encoded pictures and prompts, shared by runs; nothing is OUT/cache; with none "
        "everything is encoded each time",
    )
    workers: int = option(1, DATA, "threads that make batches ahead", least=0, most=64)

    base: str = option(
        TINY,
        MODEL,
        "what is steered: tiny (the embedded model), a single-file checkpoint, or a folder "
        "of diffusers",
    )
    tokenizer: str | None = option(
        None, MODEL, "folder with CLIP's vocab.json and merges.txt, or a hub name"
    )
    prediction: str | None = option(
        None,
        MODEL,
        "what the base predicts, v for SD 2.1 at 768; nothing asks the file",
        choices=("eps", "v"),
        pinned=True,
    )
    kind: str = option(
        "controlnet",
        MODEL,
        "what is trained",
        choices=("controlnet", "control_lora", "lllite"),
        pinned=True,
    )
    init: str | None = option(
        None,
        MODEL,
        "net of this kind to go on from, in any layout; nothing copies the base's encoder",
    )
    rank: int | None = option(
        None,
        MODEL,
        "of a new Control-LoRA, or the width of a new LLLite; nothing is 128 and 64",
        least=1,
    )
    sd_locked: bool = option(
        True, MODEL, "leave the base as it is; without, its decoder is trained too", pinned=True
    )
    only_mid_control: bool = option(
        False, MODEL, "steer the middle block alone, as for style", pinned=True
    )

    steps: int = option(4000, STEPS, "optimizer steps", least=1)
    batch_size: int = option(4, STEPS, "pairs that a process sees at once", least=1)
    accumulation: int = option(1, STEPS, "batches that make one optimizer step", least=1)
    lr: float = option(1e-5, STEPS, "learning rate, at its highest", above=0)
    lr_schedule: str = option(
        "constant", STEPS, "what follows the warm-up", choices=("constant", "cosine")
    )
    warmup: int = option(0, STEPS, "steps over which the learning rate rises", least=0)
    optimizer: str = option(
        "adamw",
        STEPS,
        "adamw8bit keeps its state in a quarter of the memory, with bitsandbytes",
        choices=("adamw", "adamw8bit"),
        pinned=True,
    )
    weight_decay: float = option(0.01, STEPS, "AdamW's", least=0)
    clip: float = option(1.0, STEPS, "largest norm of the gradient; 0 leaves it", least=0)
    min_snr: float = option(
        0.0, STEPS, "gamma of min-SNR, 5 in its paper; 0 weighs all timesteps alike", least=0
    )
    ema: float = option(
        0.0,
        STEPS,
        "decay of averaged weights, such as 0.9999, which are then what is saved; 0 averages none",
        least=0,
        most=0.999999,
    )
    seed: int = option(0, STEPS, "of all that is drawn at random", least=0, most=2**63 - 1)

    device: str = option(
        "auto", SPEED, "auto takes a GPU where there is one", choices=("auto", "cpu")
    )
    precision: str = option(
        "fp32", SPEED, "what the nets compute in", choices=("fp32", "bf16", "fp16"), pinned=True
    )
    checkpointing: bool = option(
        False, SPEED, "compute activations twice instead of keeping them: less memory, more time"
    )
    layers: str = option(
        "auto",
        SPEED,
        "lean keeps a third of what PyTorch's own (plain) keep, and computes a little twice for "
        "it; auto is plain on a CUDA GPU that has room for it, else lean",
        choices=("auto", "lean", "plain"),
    )

    out: str = option("output/training", SAVING, "folder of everything that the run writes")
    save_every: int = option(500, SAVING, "steps between checkpoints", least=1)
    keep: int = option(2, SAVING, "checkpoints kept beside the best one", least=1)
    save_dtype: str = option(
        "fp16", SAVING, "number type of trained nets' files", choices=("fp32", "fp16", "bf16")
    )

    log_every: int = option(10, WATCHING, "steps between lines of the history", least=1)
    tensorboard: bool = option(False, WATCHING, "write logs for TensorBoard into OUT/tensorboard")
    evaluate_every: int = option(
        500, WATCHING, "steps between samples of held-out hints; 0 takes none", least=0
    )
    score: str | None = option(
        None, WATCHING, "how hints are compared, such as edge_f1; nothing asks the annotator's name"
    )
    sample_steps: int = option(20, WATCHING, "sampling steps of these samples", least=1, most=999)
    guidance: float | None = option(
        None, WATCHING, "their guidance; nothing is 3 for tiny and 7.5 for others", least=0
    )

    def __post_init__(self) -> None:
        for one in options_of(type(self)):
            object.__setattr__(self, one.name, one.read(getattr(self, one.name)))
        if self.kind == "lllite" and self.only_mid_control:
            raise CldmError(
                "kind is lllite and only_mid_control is true, but a ControlNet-LLLite steers "
                "nothing in the middle block alone: take another kind, or leave it false."
            )
        if self.rank is not None and self.kind == "controlnet":
            raise CldmError(
                f"rank is {self.rank} and kind is controlnet, which has none: leave it out."
            )
        if self.checkpointing and self.layers == "plain":
            raise CldmError(
                "checkpointing is true and layers is plain, but one saves memory and the other "
                "spends it: leave one of them out."
            )
        named_columns(self.columns)
        if self.annotator is not None and not all(self.annotator.partition(":")[::2]):
            raise CldmError(
                f"annotator is {self.annotator!r}, expected MODULE:FUNCTION, such as "
                f"annotators:canny."
            )
        if self.warmup > self.steps:
            raise CldmError(
                f"warmup is {self.warmup}, expected at most the number of steps, {self.steps}."
            )

    @classmethod
    def of(cls, values: Mapping[str, Any], where: str = "") -> TrainConfig:
        """From values by name; raises CldmError, `where` in front, for what is unknown or wrong."""
        return checked(cls, values, where)

    @classmethod
    def from_yaml(cls, path: str | Path, flags: Mapping[str, Any] | None = None) -> TrainConfig:
        """From a YAML file, with flags over it; raises CldmError with the file's name."""
        return cls.of({**read_yaml(Path(path)), **(flags or {})}, f"{path}: ")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def named_columns(columns: str | None) -> dict[str, str]:
    """From ROLE=NAME,ROLE=NAME names by role: target, hint, prompt; raises CldmError for others."""
    found: dict[str, str] = {}
    for entry in (columns or "").split(","):
        role, _, name = (part.strip() for part in entry.partition("="))
        if entry.strip() and (role not in ROLES or not name):
            raise CldmError(
                f"columns is {columns!r}, expected ROLE=NAME with a role of {', '.join(ROLES)}, "
                f"such as hint=edges,prompt=caption."
            )
        if entry.strip():
            found[role] = name
    return found


def pinned_differences(saved: Mapping[str, Any], config: TrainConfig) -> list[str]:
    """What a checkpoint's run had otherwise and can't be changed, such as "rank 8 (now 16)"."""
    now = config.to_dict()
    names = [one.name for one in options_of(TrainConfig) if one.pinned]
    changed = [name for name in names if name in saved and saved[name] != now[name]]
    if "ema" in saved and bool(saved["ema"]) != bool(config.ema):
        changed.append("ema")
    # The folder of the base may have been moved; another file is another base.
    if "base" in saved and Path(saved["base"]).name != Path(config.base).name:
        changed.append("base")
    changed += _changed_evaluations(saved, now)
    return [f"{name} {saved[name]} (now {now[name]})" for name in changed]


def _changed_evaluations(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What would score pairs that were trained on, or by another measure than before.

    Evaluations may be left out on the way, but not begun: no pair would be new to the net.
    """
    deciding = ("evaluate_every", "held_out")
    if not all(now[name] for name in deciding):
        return []
    missing = [name for name in deciding if saved.get(name) == 0]
    names = missing or ("held_out", "seed", "annotator", "score")
    return [name for name in names if name in saved and saved[name] != now[name]]
