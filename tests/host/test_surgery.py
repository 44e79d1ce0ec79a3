"""The nodes that make nets of nets: what they give can be applied at once, saved and loaded."""

import json
from collections.abc import Callable
from typing import Any

IN_HOST = """
import comfy.sample, comfy.sd, torch
files, embedded = pack("nodes.host.files"), pack("nodes.host.embedded")
apply = pack("nodes.apply")
surgery, tiny = pack("nodes.surgery"), pack("cldm_core.tiny")
torch.set_grad_enabled(False)
model, clip = embedded.load_model(), embedded.load_clip()
text = clip.encode_from_tokens_scheduled(clip.tokenize("crab"))
hint = torch.zeros(1, 128, 128, 3)
hint[:, 40:80, 40] = 1
canny, mask = (files.load_control(tiny.weights(name)).control for name in ("canny", "mask"))

def sample(control, model=model):
    applied = apply.ApplyControlNet.execute(text, text, control, hint, 1.0, 0.0, 1.0)
    positive, negative = applied.args
    latent = torch.zeros(1, 4, 16, 16)
    noise = comfy.sample.prepare_noise(latent, 3)
    return comfy.sample.sample(model, noise, 2, 3.0, "euler", "normal", positive, negative, latent,
                               disable_pbar=True)

def distance(a, b):
    return float((a - b).norm() / b.norm())

def refused(call, *args):
    try:
        call(*args)
        return ""
    except ValueError as error:
        return str(error)

expected, other = sample(canny), sample(mask)
merge, transfer = surgery.MergeControlNets.execute, surgery.TransferControlNet.execute
extract, save = surgery.ExtractControlLora.execute, surgery.SaveControlNet.execute
same = sample(merge(canny, mask, 0.0).args[0])
half = sample(merge(canny, mask, 0.5).args[0])
moved = sample(transfer(canny, model, model).args[0])

# A LoRA in the target: the net goes along with it, and with the source unpatched it is itself.
unet = model.model.diffusion_model.state_dict()
key = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
patched = model.clone()
patched.add_patches({f"diffusion_model.{key}": (torch.ones_like(unet[key]) / 50,)})
before = canny.net.state_dict()[key]
after = transfer(canny, model, patched).args[0].net.state_dict()[key]
shift = float((after - before - 1 / 50).abs().max())

full, _ = extract(canny, model, 1280).args
low, report_low = extract(canny, model, 8).args
full, low = sample(full), sample(low)

wanted = [
    ("mine", "fp32", "original"), ("sub/mine", "fp16", "diffusers"), ("mine", "fp32", "original")
]
saved = [save(canny, *settings).args[0] for settings in wanted]
names = sorted(files.controlnet_files())
loaded = sample(files.load_control(files.controlnet_path("mine.safetensors")).control)
narrow = sample(files.load_control(files.controlnet_path("sub/mine.safetensors")).control)
lora = extract(canny, model, 1280).args[0]
save(lora, "lora", "fp32", "original")
again = sample(files.load_control(files.controlnet_path("lora.safetensors")).control)

# A file's metadata goes along, its own type too, and what is made of it says so.
read, convert = pack("cldm_core.checkpoint").read, pack("cldm_core.checkpoint").convert
licensed = files.controlnet_path("mine.safetensors").with_name("licensed.safetensors")
convert(tiny.weights("canny"), licensed, dtype=torch.bfloat16, hint="edges",
        metadata={"licence": "MIT"})
licensed = files.load_control(licensed).control
save(licensed, "kept", "as loaded", "original")
kept = read(files.controlnet_path("kept.safetensors"))
kept = [kept.metadata["licence"], kept.metadata["cldm_core.hint"],
        sorted({str(value.dtype) for value in kept.tensors.values()})]
save(merge(licensed, mask, 0.25).args[0], "merged", "fp16", "original", "edges or masks")
sources = read(files.controlnet_path("merged.safetensors")).metadata
sources = [sources["cldm_core.hint"], sources["cldm_core.sources"]]
report(
    same=torch.equal(same, expected), moved=torch.equal(moved, expected), shift=shift,
    half=[distance(half, expected), distance(half, other)],
    full=distance(full, expected), low=distance(low, expected), report_low=report_low,
    saved=saved, files=names, loaded=torch.equal(loaded, expected),
    narrow=distance(narrow, expected),
    again=torch.equal(again, full),
    outside=refused(save, canny, "../../evil", "fp16", "original"),
    foreign=refused(merge, object(), canny, 0.5),
    keys=refused(save, lora, "x", "fp32", "diffusers"),
    said=merge(canny, mask, 0.25).ui["text"],
    said_of_file=save(canny, "t", "as loaded", "original").ui["text"],
    kept=kept, sources=sources, titles=[canny.title, lora.title],
)
"""


def test_nets_of_nets(in_host: Callable[..., dict[str, Any]]) -> None:
    found = in_host(IN_HOST)
    assert found["same"]
    assert found["moved"]
    assert found["shift"] < 1e-6
    assert min(found["half"]) > 1e-3
    assert found["full"] < 1e-3 < found["low"]
    assert "of rank 8" in found["report_low"]
    assert found["saved"] == ["mine.safetensors", "sub/mine.safetensors", "mine_2.safetensors"]
    assert {"mine.safetensors", "mine_2.safetensors", "sub/mine.safetensors"} <= {
        name.replace("\\", "/") for name in found["files"]
    }
    assert found["loaded"]
    assert found["narrow"] < 1e-2
    assert found["again"]
    assert "can't be called '../../evil'" in found["outside"]
    assert "was loaded by ComfyUI's own loader" in found["foreign"]
    assert "In this node that is keys: original" in found["keys"]
    assert found["said"] == [
        "75% of control_canny.safetensors, 25% of control_mask.safetensors.\nPooling: off."
    ]
    assert found["said_of_file"][0].startswith("Saved as t.safetensors\nembedded model ControlNet")
    assert found["titles"] == [
        "control_canny.safetensors: ControlNet for embedded model",
        "a Control-LoRA: Control-LoRA for embedded model",
    ]
    assert found["kept"] == ["MIT", "edges", ["torch.bfloat16"]]
    hint, sources = found["sources"]
    assert hint == "edges or masks"
    sources = json.loads(sources)
    assert sources["second"] == {"name": "control_mask.safetensors", "share": 0.25}
    # What a file says of its own sources stays with it.
    assert sources["first"].pop("sources")["source"]["name"] == "control_canny.safetensors"
    assert sources["first"] == {"name": "licensed.safetensors", "share": 0.75}
