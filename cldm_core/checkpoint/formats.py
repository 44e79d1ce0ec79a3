"""The kinds of files, each told from its keys; never from the file's name.

The signs are those that comfy/controlnet.py of ComfyUI, control.py of ComfyUI-Advanced-ControlNet
and controlnet_model_guess.py of sd-webui-controlnet go by, made exclusive: a file has one kind at
most.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import Enum

from torch import Tensor

from .read import StateDict
from .signs import Keys

CONTROL_PREFIX = "control_model."
FRAMEWORK_WORDS = frozenset(
    (
        "_orig_mod",
        "adapter",
        "control_model",
        "control_net",
        "controlnet",
        "diffusion_model",
        "model",
        "module",
        "net",
    )
)
"""What prefixes are made of: names of wrappers and of the attributes that hold a net."""
MOST_WORDS = 4
MOST_PREFIXES = 16
"""How many different ones a file is searched behind; honest files have three or four."""
CLDM = "zero_convs.0.0.weight"
DIFFUSERS = "controlnet_cond_embedding.conv_in.weight"
ADAPTER_DIFFUSERS = "adapter.body.0.resnets.0.block1.weight"
UNET = "output_blocks.0.0.in_layers.0.weight"
UNET_PREFIX = "model.diffusion_model."
MARKERS = ("difference", "lora_controlnet")
"""Keys that tell of the file and are no weights."""

HOST_LOADER = (
    "use ComfyUI's own Load ControlNet Model, or Load ControlNet (CLDM), which hands it over"
)
ADVANCED = "use the node pack ComfyUI-Advanced-ControlNet"


class Where(Enum):
    """Who can do something with a kind of file."""

    HERE = "this pack"
    HOST = "ComfyUI's own loader"
    NOWHERE = "neither"


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Of the signs (signs.py) every one of `every` must be there, at least one of `some` where there
    are any, and none of `never`. `layout` says whose keys they are, unless the file has diffusers'
    own. `advice` says what to do with a file that isn't for this pack.
    """

    name: str
    title: str
    layout: str = "cldm"
    every: tuple[str, ...] = ()
    some: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    where: Where = Where.HERE
    advice: str = ""

    @property
    def noun(self) -> str:
        """What it is, without article and explanation."""
        return self.title.partition(" ")[2].partition(",")[0]

    def matches(self, keys: Keys) -> bool:
        return (
            all(map(keys.show, self.every))
            and (not self.some or any(map(keys.show, self.some)))
            and not any(map(keys.show, self.never))
        )

    def likeness(self, keys: Keys) -> float:
        """Share of the wanted signs that are there, from 0 to 1; for files of no known kind.

        Signs that files of many kinds have tell nothing.
        """
        some = [sign for sign in self.some if sign not in _COMMON]
        shown = sum(map(keys.show, self.every)) + any(map(keys.show, some))
        return shown / (len(self.every) + bool(self.some))

    def refusal(self, name: str) -> str:
        """The sentence for a user who tried to load such a file."""
        return f"{name} holds {self.title}, which this pack doesn't load: {self.advice}."


def layout(kind: Format, state: StateDict) -> str:
    """Whose keys a file of that kind has."""
    return "diffusers" if {DIFFUSERS, ADAPTER_DIFFUSERS} & set(state) else kind.layout


def control_part(tensors: StateDict) -> StateDict:
    """The control net's part of a whole checkpoint; all of any other file.

    Prefixes go that training frameworks put before every key, or before a net inside a larger one.
    Markers at the top, such as `difference`, stay.
    """
    prefix = _prefix(tensors)
    return _behind(prefix, tensors) if prefix else tensors


def _prefix(tensors: StateDict) -> str:
    """What stands before the keys of the net that is looked for; nothing where none is known."""
    whole = recognise(tensors)
    prefixes = sorted(
        _prefixes(tensors), key=lambda prefix: (prefix != CONTROL_PREFIX, len(prefix))
    )[:MOST_PREFIXES]
    if whole is not None and whole.where is Where.HERE:
        return ""
    kinds = {prefix: recognise(_behind(prefix, tensors)) for prefix in prefixes}
    for prefix, kind in kinds.items():
        if kind is not None and kind.where is Where.HERE:
            return prefix
    if CONTROL_PREFIX in kinds:
        return CONTROL_PREFIX
    if whole is not None:
        return ""
    common = [p for p in prefixes if all(key.startswith(p) for key in tensors)]
    return next((prefix for prefix in common if kinds[prefix]), "")


def _prefixes(keys: Iterable[str]) -> set[str]:
    """The words of FRAMEWORK_WORDS that keys start with, in all lengths."""
    found = set()
    for key in keys:
        prefix = ""
        for word in key.split(".", MOST_WORDS)[:MOST_WORDS]:
            if word not in FRAMEWORK_WORDS:
                break
            prefix += f"{word}."
            found.add(prefix)
    return found


def _behind(prefix: str, tensors: StateDict) -> dict[str, Tensor]:
    found = {}
    for key, value in tensors.items():
        start, dot, name = key.rpartition(".")
        if key.startswith(prefix):
            found[key.removeprefix(prefix)] = value
        elif name in MARKERS and prefix.startswith(start + dot):
            found[name] = value
    return found


def recognise(keys: Collection[str]) -> Format | None:
    """The kind of file with these keys, as `control_part` gives them; None for an unknown one."""
    searched = Keys(keys)
    return next((kind for kind in FORMATS if kind.matches(searched)), None)


def nearest(keys: Collection[str], count: int = 3) -> list[Format]:
    """Kinds of which the keys show at least a part, the likest first."""
    searched = Keys(keys)
    ranked = sorted(FORMATS, key=lambda kind: kind.likeness(searched), reverse=True)
    return [kind for kind in ranked if kind.likeness(searched) > 0][:count]


def _host(name: str, title: str, *every: str, never: Iterable[str] = ()) -> Format:
    return Format(
        name, title, every=every, never=tuple(never), where=Where.HOST, advice=HOST_LOADER
    )


_XS = ("*.ctrl_to_base*", "*control_to_base_for_conv_in*", "*enc_zero_convs_out.*")
_UNION = ("task_embedding", "control_add_embedding.linear_1.weight")
_FOREIGN = (
    *_XS,
    "*lora_layer*",
    "*motion_modules*",
    "*temporal_res_block*",
    "*task_id_hypernet*",
    "brushnet_*",
    "conv_in_condition.weight",
)
_FIRST, _LAST = "input_blocks.0.0.weight", "out.2.weight"
_HINT = "*input_hint_block.*"
_KOLORS = "encoder_hid_proj.weight"
_COMMON = ("*controlnet*", "*input_hint_block*")
"""Signs that alone tell no kind."""
_DIT = "controlnet_blocks.0.weight"
_XLABS = "double_blocks.0.img_attn.norm.key_norm.scale"
_SD3 = "pos_embed_input.proj.weight"
_SD35 = "transformer_blocks.0.adaLN_modulation.1.bias"
_QWEN = "transformer_blocks.0.img_mlp.net.0.proj.weight"
_FLUX = "controlnet_x_embedder.weight"

FORMATS = (
    Format(
        "controlnet_xs",
        "a ControlNet-XS",
        some=_XS,
        where=Where.NOWHERE,
        advice="it steers the base through connections in both directions; use it with diffusers",
    ),
    Format(
        "ctrlora",
        "a CtrLoRA, a small change to a base ControlNet of its own",
        some=("*lora_layer*",),
        where=Where.NOWHERE,
        advice=ADVANCED,
    ),
    Format(
        "ctrlora_base",
        "the base ControlNet of CtrLoRAs, whose hints come as latents",
        every=(CLDM,),
        never=(_HINT, DIFFUSERS, *_UNION, *MARKERS, *_FOREIGN),
        where=Where.NOWHERE,
        advice=ADVANCED,
    ),
    Format(
        "unicontrol",
        "a UniControl net, which is told its task by a network of its own",
        some=("*task_id_hypernet*",),
        where=Where.NOWHERE,
        advice="use its authors' code, or ControlNets of the single tasks",
    ),
    Format(
        "brushnet",
        "a BrushNet or PowerPaint net, which steers the base through every block",
        some=("brushnet_*", "conv_in_condition.weight"),
        where=Where.NOWHERE,
        advice="use a node pack for BrushNet",
    ),
    Format(
        "kolors",
        "a ControlNet for Kolors, which reads the texts of another language model",
        every=(DIFFUSERS, _KOLORS),
        never=(CLDM, *_UNION, *_FOREIGN),
        where=Where.NOWHERE,
        advice="use a node pack for Kolors",
    ),
    Format(
        "coadapter_fuser",
        "the fuser of CoAdapters, which combines several T2I-Adapters",
        every=("spatial_feat_mapping.*",),
        never=("control_add_embedding.linear_1.weight",),
        where=Where.NOWHERE,
        advice="load the adapters themselves; without the fuser they can be used one by one",
    ),
    Format(
        "clip_vision",
        "a CLIP vision model",
        every=("vision_model.embeddings.*",),
        never=("text_model.embeddings.*", UNET_PREFIX + UNET),
        where=Where.NOWHERE,
        advice="put it into models/clip_vision and use Load CLIP Vision",
    ),
    Format(
        "sparsectrl",
        "a SparseCtrl net for AnimateDiff videos",
        every=("*motion_modules*",),
        some=("*controlnet*", "*input_hint_block*"),
        where=Where.NOWHERE,
        advice=ADVANCED,
    ),
    Format(
        "svd_controlnet",
        "a ControlNet for Stable Video Diffusion",
        every=("*temporal_res_block*",),
        some=("*controlnet*", "*input_hint_block*"),
        where=Where.NOWHERE,
        advice=ADVANCED,
    ),
    Format(
        "style_adapter",
        "a style adapter, which changes the prompt and takes no hint",
        some=("*style_embedding*",),
        where=Where.NOWHERE,
        advice="put it into models/style_models and use Load Style Model and Apply Style Model",
    ),
    Format(
        "lllite_dit",
        "a ControlNet-LLLite for a transformer model (Anima)",
        some=("*lllite_dit_*", "lllite_conditioning1.conv1.weight"),
        where=Where.NOWHERE,
        advice=ADVANCED,
    ),
    Format(
        "lllite",
        "a ControlNet-LLLite",
        layout="kohya",
        every=("lllite_unet_*",),
        never=("*lllite_dit_*", "lllite_conditioning1.conv1.weight"),
    ),
    Format("control_lora", "a Control-LoRA", every=("lora_controlnet",), never=_FOREIGN),
    Format(
        "difference",
        "a ControlNet difference, which is added to its base model",
        every=("difference", CLDM),
        never=("lora_controlnet", *_FOREIGN),
    ),
    Format("union", "a union ControlNet", every=_UNION, some=(CLDM, DIFFUSERS), never=_FOREIGN),
    Format(
        "t2i_adapter",
        "a T2I-Adapter",
        layout="original",
        some=(
            "body.0.in_conv.weight",
            "body.0.block2.weight",
            ADAPTER_DIFFUSERS,
        ),
        never=("*style_embedding*",),
    ),
    Format(
        "diffusers", "a ControlNet", every=(DIFFUSERS,), never=(*_UNION, CLDM, _KOLORS, *_FOREIGN)
    ),
    Format(
        "cldm",
        "a ControlNet",
        every=(CLDM, _HINT),
        never=(*_UNION, DIFFUSERS, "difference", "lora_controlnet", *_FOREIGN),
    ),
    _host("hunyuan_dit", "a HunyuanDiT ControlNet", "after_proj_list.18.bias"),
    _host("flux_xlabs", "a Flux ControlNet (XLabs)", _DIT, _XLABS),
    _host("flux_mistoline", "a Flux ControlNet (MistoLine)", "controlnet_blocks.0.linear.weight"),
    _host("sd35", "an SD 3.5 ControlNet", _DIT, _SD3, _SD35, never=(_XLABS,)),
    _host("sd3", "an SD 3 ControlNet", _DIT, _SD3, never=(_XLABS, _SD35)),
    _host("qwen", "a Qwen-Image ControlNet", _DIT, _QWEN, never=(_XLABS, _SD3)),
    _host("flux", "a Flux ControlNet", _DIT, _FLUX, never=(_XLABS, _SD3, _QWEN)),
    _host(
        "qwen_fun",
        "a Qwen-Image Fun ControlNet",
        "control_blocks.0.after_proj.weight",
        "control_img_in.weight",
    ),
    Format(
        "cascade",
        "a Stable Cascade ControlNet",
        some=("backbone.0.0.weight", "backbone.10.blocks.0.weight"),
        where=Where.HOST,
        advice=HOST_LOADER,
    ),
    Format(
        "base_model",
        "a base model",
        every=(
            f"{UNET_PREFIX}{UNET}|{UNET}|up_blocks.0.resnets.0.conv1.weight",
            f"{UNET_PREFIX}{_FIRST}|{_FIRST}|conv_in.weight",
            f"{UNET_PREFIX}{_LAST}|{_LAST}|conv_out.weight",
        ),
        never=(CLDM, DIFFUSERS, *_FOREIGN),
        where=Where.NOWHERE,
        advice="load it with Load Checkpoint, or with cldm_core.load_unet",
    ),
    Format(
        "lora",
        "a LoRA",
        some=(
            "*.lora_down.weight*",
            "*.lora_A.*",
            "*.lora.down.weight*",
            "*_lora.down.weight*",
        ),
        never=("lora_controlnet", *_FOREIGN),
        where=Where.NOWHERE,
        advice="put it into models/loras and use Load LoRA",
    ),
    Format(
        "lycoris",
        "a LyCORIS file (LoHa or LoKr)",
        some=("*.hada_w1_a*", "*.lokr_w1*"),
        never=("*.lora_down.weight*", "*.lora_A.*", *_FOREIGN),
        where=Where.NOWHERE,
        advice="put it into models/loras and use Load LoRA",
    ),
    Format(
        "ip_adapter",
        "an IP-Adapter",
        some=("*ip_adapter.*", "image_proj.proj.weight", "image_proj.latents"),
        never=_FOREIGN,
        where=Where.NOWHERE,
        advice="use a node pack for IP-Adapters",
    ),
)
