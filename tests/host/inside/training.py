"""Cases of training in one process of a host; `run_in_host` starts it."""

import errno
import gc
import io
import json
import sys
import tarfile
import traceback
import weakref
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

sys.path.append(str(Path(__file__).parent))

import comfy.latent_formats as latents
import comfy.model_management
import comfy.model_sampling
import folder_paths
import torch
from comfy import weight_adapter
from PIL import Image
from training_bases import Bases, about
from world import bytes_held, distance, sentence

LATE = (".cldm_core.training", ".cldm_core.sheets", ".cldm_core.pipeline", ".nodes.host.training")
EARLY = sorted(name for name in sys.modules if any(late in name for late in LATE))
nodes, embedded = pack("nodes.train"), pack("nodes.host.embedded")  # noqa: F821
data, training = pack("nodes.dataset"), pack("nodes.host.training")  # noqa: F821
base, circles = pack("nodes.host.training_base"), pack("cldm_core.training.circles")  # noqa: F821
model, clip, vae = embedded.load_model(), embedded.load_clip(), embedded.load_vae()
KEY = "input_blocks.1.1.transformer_blocks.0.attn1.to_q.weight"
DATASET = data.Dataset(circles.CirclePairs(8, 64), None, True)


def run(name, model=model, more="", clip=clip, dataset=DATASET, **settings):
    """The outputs of Train ControlNet after two steps."""
    given = {"kind": "controlnet", "resolution": 64, "steps": 2, "batch_size": 2}
    given |= {"precision": "fp32", "evaluate_every": 0, "seed": 0, "resume": False}
    given |= {"learning_rate": 1e-3, "more": more, **settings}
    with torch.inference_mode():
        return nodes.TrainControlNet.execute(model, clip, vae, dataset, name, **given)


def begun(name, **settings):
    """The trainable and the batches of a run that ends before its first step."""
    found, fit = [], training.fit

    def ends(trainable, batches, *args, **kwargs):
        found.extend((trainable, batches))
        raise RuntimeError

    training.fit = ends
    try:
        sentence(lambda: run(name, **settings))
    finally:
        training.fit = fit
    return found


@contextmanager
def hidden(*names):
    """Packages that can't be imported meanwhile."""
    kept = {key: value for key, value in sys.modules.items() if key.split(".")[0] in names}
    for key in kept:
        del sys.modules[key]
    sys.modules.update(dict.fromkeys(names))
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]
        sys.modules.update(kept)


def lora():
    """How far the copied weight is from the patched one, and which others differ."""
    patched = model.clone()
    own = model.model.diffusion_model.state_dict()[KEY].clone()
    patched.add_patches({f"diffusion_model.{KEY}": (torch.ones_like(own) / 50,)})
    with torch.inference_mode():
        copied = base.base_of(patched, clip, vae, torch.float32).pipeline.unet.state_dict()
        plain = base.base_of(model, clip, vae, torch.float32).pipeline.unet.state_dict()
    shift = float((copied[KEY] - plain[KEY] - 1 / 50).abs().max())
    return shift, sum(not torch.equal(copied[k], plain[k]) for k in plain if k != KEY)


def digits():
    """Of a run in half precision: how far its net is from the MODEL, and the UNet's type."""
    trainable, _ = begun("digits", precision="bf16")
    own = model.model.diffusion_model.state_dict()
    net = trainable.net.state_dict()
    apart = max(distance(value, own[key].float()) for key, value in net.items() if key in own)
    return apart, str(next(trainable.unet.parameters()).dtype)


def drawn():
    """How large circles are that a run of another size than Control Dataset's is trained on."""
    _, batches = begun("drawn", resolution=128)
    return batches.source[0].read_hint().shape


def untouched():
    """Whether what is trained was made to infer with, and the host's weights are as they were."""
    before = {k: v.clone() for k, v in model.model.diffusion_model.state_dict().items()}
    with torch.inference_mode():
        unet = base.base_of(model, clip, vae, torch.float32).pipeline.unet
    run("untouched", more="sd_locked: false")
    after = model.model.diffusion_model.state_dict()
    return {
        "inference": any(one.is_inference() for one in unet.parameters()),
        "same": all(torch.equal(after[key], before[key]) for key in before),
    }


def memory():
    """Which parts of a run are alive when it is over, and the bytes that have come to stay."""
    run("first")
    made, fit = {}, training.fit

    def noted(trainable, batches, *args, evaluator, **kwargs):
        parts = {"unet": trainable.unet, "net": trainable.net, "batches": batches}
        parts |= {"evaluator": evaluator, "reports": kwargs["history"]}
        made.update({name: weakref.ref(part) for name, part in parts.items()})
        return fit(trainable, batches, *args, evaluator=evaluator, **kwargs)

    before = bytes_held()
    training.fit = noted
    try:
        run("second", evaluate_every=2, more="held_out: 2\nsample_steps: 2")
    finally:
        training.fit = fit
    gc.collect()
    return [name for name, part in made.items() if part() is not None], bytes_held() - before


def best():
    """Of which step the net and the decoder are, where the first step scores best.

    And then, of which step the net is after the run went on for one without evaluations.
    """
    evaluate, scores = pack("cldm_core.training.evaluate"), iter((0.1, 0.9, 0.2))  # noqa: F821
    scored = evaluate.Evaluator._scores
    evaluate.Evaluator._scores = lambda self, pictures: [next(scores)] * len(pictures)
    try:
        more = "held_out: 2\nsample_steps: 1\nsd_locked: false\nsave_every: 1\nsave_dtype: fp32"
        output = run("best", evaluate_every=1, more=more)
    finally:
        evaluate.Evaluator._scores = scored
    folder, read = Path(output.args[4]), pack("cldm_core.checkpoint").read  # noqa: F821
    steps = {n: read(folder / f"checkpoints/step-{n:08d}/net_unet.safetensors") for n in (1, 2)}
    key = "output_blocks.0.0.in_layers.2.weight"
    (patch,) = output.args[1].patches[f"diffusion_model.{key}"]
    same = [n for n, file in steps.items() if torch.equal(file.tensors[key], patch[1][1][0])]
    found = {"step": about(output)["step"], "decoder": same[0] if len(same) == 1 else same}
    found["said"] = output.ui["text"][0]
    unscored = about(run("unscored"))
    found["unscored"] = [unscored["step"], "score" in unscored]
    return {**found, "then": about(run("best", more=more, steps=3, resume=True))["step"]}


def no_matplotlib():
    """What the node says of a run with two evaluations."""
    with hidden("matplotlib"):
        output = run("unplotted", evaluate_every=1, more="held_out: 2\nsample_steps: 2")
    return output.ui["text"][0]


def no_accelerate():
    """What is told, and how many pictures were encoded by then."""
    calls, encode = [], vae.encode
    vae.encode = lambda *args: calls.append(1) or encode(*args)
    try:
        with hidden("accelerate"):
            return sentence(lambda: run("unaccelerated")), len(calls)
    finally:
        del vae.encode


def keys():
    """Which keys of encoders in caches are as they should be."""
    weights = clip.cond_stage_model.state_dict()
    name = next(key for key in weights if "mlp.fc1.weight" in key)
    skipped = clip.clone()
    skipped.clip_layer(-2)

    def lora(strength=1.0, weight=1.0):
        up, down = (torch.full((size, 1), weight) for size in weights[name].shape)
        adapter = weight_adapter.LoRAAdapter(set(), (up, down.T, 1.0, None, None, None))
        other = clip.clone()
        other.add_patches({name: adapter}, strength)
        return other

    own = model.model
    sd15 = SimpleNamespace(model_config=own.model_config, latent_format=latents.SD15())

    def key(clip=clip, model=model):
        return base.HostEncoders(model, clip, vae).key

    plain, patched = key(), lora()
    keys = {"plain": plain, "layer": key(skipped), "LoRA": key(patched)}
    keys |= {"strength": key(lora(0.5)), "other LoRA": key(lora(weight=2.0))}
    keys["latent format"] = key(model=SimpleNamespace(model=sd15))
    with torch.inference_mode():
        base.HostEncoders(model, patched, vae).texts(["a hut"], [None])
    again = {"plain": key(), "LoRA": key(patched)}
    return {
        "different": len(set(keys.values())) == len(keys),
        "loaded": all(keys[name] == found for name, found in again.items()),
        "read again": key(lora()) == keys["LoRA"],
    }


def schedules():
    """What is told of a MODEL by its noise schedule; nothing where it can be trained on."""
    kinds = comfy.model_sampling

    def told(schedule, *settings):
        sampling = type("Sampling", (schedule, kinds.V_PREDICTION), {})(*settings)
        other = model.clone()
        other.add_object_patch("model_sampling", sampling)
        return sentence(lambda: base.base_of(other, clip, vae, torch.float32))

    return {
        "SD": told(kinds.ModelSamplingDiscrete),
        "zero terminal SNR": told(kinds.ModelSamplingDiscrete, None, True),
        "EDM": told(kinds.ModelSamplingContinuousEDM),
    }


def folders():
    """Which folders of a name a new run leaves alone, by what is in them."""
    runs = pack("nodes.host.training_runs")  # noqa: F821

    def left(place):
        folder = runs.run_folder(place.replace("/", "_"))
        (folder / place).mkdir(parents=True)
        return runs.run_folder(folder.name) != folder

    return {place: left(place) for place in ("cache", "history.jsonl", "checkpoints/step-00000002")}


def unloaded():
    """The host's models that stay loaded while a run trains, by its steps."""
    seen, advance = {}, training.NodeReports.advance

    def noted(self, step, steps):
        loaded = comfy.model_management.current_loaded_models
        seen[str(step)] = [type(one.model.model).__name__ for one in loaded]
        return advance(self, step, steps)

    training.NodeReports.advance = noted
    try:
        run("unloaded", evaluate_every=1, more="held_out: 2\nsample_steps: 2")
    finally:
        training.NodeReports.advance = advance
    return seen


def other_base():
    """What a run's record calls its MODEL, and what is told where it goes on upon another."""
    output = run("based", steps=1)
    patched = model.clone()
    own = model.model.diffusion_model.state_dict()[KEY]
    patched.add_patches({f"diffusion_model.{KEY}": (torch.ones_like(own) / 50,)})
    told = sentence(lambda: run("based", patched, resume=True))
    return about(output)["config"]["base"], told


def init():
    """How far a net is from the one of models/controlnet that it goes on from."""
    first = run("to go on from", more="save_dtype: fp32")
    more = "init: to go on from.safetensors\nsave_dtype: fp32"
    again = run("gone on", more=more, steps=1, learning_rate=1e-8)
    states = [one.args[0].net.state_dict() for one in (first, again)]
    apart = max(distance(states[0][key], value) for key, value in states[1].items())
    zeros = max(float(v.abs().max()) for k, v in states[0].items() if k.startswith("zero_convs"))
    return about(again)["config"]["init"], apart, zeros


def stale():
    """Whether the MODEL comes out as it is, where an earlier run left a UNet in the folder."""
    folder = pack("nodes.host.training_runs").run_folder("stale")  # noqa: F821
    folder.mkdir(parents=True)
    (folder / "last_unet.safetensors").touch()
    return run("stale", steps=1).args[1] is model


def full_disk():
    """What is told where the net can't be copied to models/controlnet, and what is left there."""

    def fails(source, target):
        Path(target).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    own, training.shutil = training.shutil, SimpleNamespace(copyfile=fails)
    try:
        told = sentence(lambda: run("full", steps=1))
    finally:
        training.shutil = own
    folder = Path(folder_paths.get_folder_paths("controlnet")[0])
    return told, [path.name for path in folder.glob("full*")]


def write_shard(path, count):
    """Pairs of a drawn circle and its outline."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pairs = circles.CirclePairs(count, 64)
    with tarfile.open(path, "w") as tar:
        for index in range(count):
            pictures = {"png": pairs[index].read_target(), "hint.png": pairs[index].read_hint()}
            for ending, picture in pictures.items():
                file = io.BytesIO()
                Image.fromarray(picture).save(file, "PNG")
                member = tarfile.TarInfo(f"{index}.{ending}")
                member.size = file.tell()
                file.seek(0)
                tar.addfile(member, file)


def shards():
    """Of shards in the output folder: pairs and scans behind each run, and whether stamps differ.

    Between the second and the third run one of them is written anew.
    """
    module = pack("cldm_core.training.shards")  # noqa: F821
    place, name = Path(folder_paths.get_output_directory()) / "sharded", "sharded/{0..1}.tar"
    for number in range(2):
        write_shard(place / f"{number}.tar", 2)
    scan, scans = module._scan, []
    module._scan = lambda path: scans.append(path.name) or scan(path)
    try:
        found = []
        for count in (2, 2, 3):
            if count > 2:
                write_shard(place / "0.tar", count)
            stamp, before = data.ControlDataset.fingerprint_inputs(data=name), len(scans)
            output = data.ControlDataset.execute(name, data.GIVEN, 32, 64)
            found.append((stamp, before, len(scans), len(output.args[0].source)))
    finally:
        module._scan = scan
    first, second, third = (stamp for stamp, *_ in found)
    return [numbers for _, *numbers in found], [first == second, second == third]


def stamps():
    """After which changes Control Dataset looks at a folder or a table anew."""
    place = Path(folder_paths.get_input_directory()) / "stamped"
    row = json.dumps({"file_name": "a.png", "text": "a hut"})
    files = ("a.png", "a.txt", "hints/a.png", "hints/stray.png")
    for name, text in {**dict.fromkeys(files, "before"), "table.jsonl": row}.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(text)

    def seen(name, opened=place):
        stamps = [data.ControlDataset.fingerprint_inputs(data=str(opened)) for _ in range(2)]
        (place / name).write_text(f"changed in {opened.name}")
        stamps.append(data.ControlDataset.fingerprint_inputs(data=str(opened)))
        return stamps[0] == stamps[1] != stamps[2]

    found = {"picture of a table": seen("a.png", place / "table.jsonl")}
    found.update({name: seen(name) for name in files[:3]})
    before = data.ControlDataset.fingerprint_inputs(data=str(place))
    (place / files[3]).unlink()
    return {**found, "stray": data.ControlDataset.fingerprint_inputs(data=str(place)) != before}


def predictions():
    """By the name of the host's class what is trained for."""

    def of(kind):
        told = sentence(lambda: base.prediction_of(kind()))
        return "refused" if told.startswith("CldmError") else base.prediction_of(kind())

    kinds = ("EPS", "V_PREDICTION", "EDM", "CONST")
    return {name: of(getattr(comfy.model_sampling, name)) for name in kinds}


def start():
    """What of training was imported before a node ran."""
    return EARLY


def words():
    """The words of the nodes beside those of the command line."""
    config, options = (pack(f"cldm_core.training.{name}") for name in ("config", "options"))  # noqa: F821
    core = {one.name: one.choices for one in options.options_of(config.TrainConfig)}
    inputs = {one.id: one for one in nodes.TrainControlNet.define_schema().inputs}
    shown = {name: tuple(inputs[name].options) for name in ("kind", "precision")}
    return data.CIRCLES == config.CIRCLES, {name: shown[name] == core[name] for name in shown}


def makers():
    """Whether hints that an annotator makes with other settings or weights have another key."""
    records, kept = data.ANNOTATORS, data.ANNOTATORS["pidinet"]
    dataset = data.Dataset(DATASET.source, "pidinet")
    first, again = dataset.maker.key, dataset.maker.key
    other = replace(kept, weights=tuple(replace(one, sha256="0") for one in kept.weights))
    records["pidinet"] = other
    try:
        return first == again, dataset.maker.key != first
    finally:
        records["pidinet"] = kept


def answer(case):
    try:
        return {"found": case()}
    except Exception:
        return {"failed": traceback.format_exc()}


cases = (start, words, lora, untouched, memory, best, no_matplotlib, no_accelerate)
cases += (predictions, keys, schedules, folders, unloaded, other_base, stamps, makers)
cases += (init, full_disk, stale, shards, digits, drawn, *Bases(pack, run, vae).cases())  # noqa: F821
report(**{case.__name__: answer(case) for case in cases})  # noqa: F821
