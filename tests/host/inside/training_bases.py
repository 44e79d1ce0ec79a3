"""Training on small bases of other kinds than the embedded model: v-prediction, and SDXL."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import comfy.latent_formats as latents
import comfy.model_base
import comfy.model_detection
import comfy.sample
import torch
from world import SD, TEXT, XL, Small, base_model, distance, sentence

POOLED = 1280


class WithVelocity(Small):
    """A base that predicts v."""

    def model_type(self, state_dict, prefix=""):
        return comfy.model_base.ModelType.V_PREDICTION


class WithSizes(Small):
    """A small SDXL, in the host's own class for it."""

    latent_format = latents.SDXL

    def get_model(self, state_dict, prefix="", device=None):
        return comfy.model_base.SDXL(self, device=device)


class Texts:
    """A CLIP whose texts are drawn by the prompt's length, and come with a pooled one."""

    layer_idx = None

    def __init__(self, patcher):
        self.patcher = patcher

    def tokenize(self, prompt):
        return prompt

    def encode_from_tokens(self, prompt, return_pooled):
        generator = torch.Generator().manual_seed(len(prompt))
        sizes = (1, 7, TEXT), (1, POOLED)
        return tuple(torch.randn(size, generator=generator) for size in sizes)


class Wide(Texts):
    """A CLIP of another model."""

    def encode_from_tokens(self, prompt, return_pooled):
        text, pooled = super().encode_from_tokens(prompt, return_pooled)
        return text.repeat(1, 1, 2), pooled


class Bases:
    """The cases. run: of training.py; vae: the embedded one."""

    def __init__(self, pack, run, vae):
        self.pack, self.run, self.vae = pack, run, vae
        self.base, self.core = pack("nodes.host.training_base"), pack("cldm_core")
        self.text = Texts(vae.patcher)
        sized = {**XL, "adm_in_channels": POOLED + 6 * 256}
        self.models = {
            "eps": base_model(SD),
            "v": base_model(SD, kind=WithVelocity),
            "SDXL": base_model(sized, kind=WithSizes),
        }

    def cases(self):
        return (
            self.small_bases,
            self.sizes,
            self.samples,
            self.own_sides,
            self.loaders,
            self.velocity,
            self.unfit,
        )

    def small_bases(self):
        """What was trained for, what the files say of it, and whether samples were scored."""
        loop = self.pack("cldm_core.training.loop")
        loss, calls = loop.training_loss, []

        def noted(*given, **named):
            calls.append(named["prediction"])
            return loss(*given, **named)

        def trained(kind, model):
            more = "held_out: 2\nsample_steps: 1"
            output = self.run(f"small {kind}", model, more, clip=self.text, evaluate_every=2)
            unet = json.loads(output.args[0].source.metadata["cldm_core.config"])["unet"]
            said = [calls[-1], about(output)["config"]["prediction"], unet["prediction"]]
            return [*said, "mask IoU" in output.ui["text"][0]]

        loop.training_loss = noted
        try:
            return {kind: trained(kind, model) for kind, model in self.models.items()}
        finally:
            loop.training_loss = loss

    def sizes(self):
        """How far what SDXL is told of sizes is from the core's, for sizes that all differ."""
        encoding, encoders = (
            self.pack("cldm_core.training.encoding"),
            self.pack("cldm_core.encoders"),
        )
        told = encoding.SizeCondition((100, 200), (3, 5), (64, 128))
        ours = self.base.HostEncoders(self.models["SDXL"], self.text, self.vae)
        _, vector = ours.texts(["a hut"], [told])
        _, pooled = self.text.encode_from_tokens("a hut", True)
        return distance(vector, encoders.sdxl_vector(pooled, [told.numbers]))

    def samples(self):
        """How far a run's samples are from the host's own, as a share of their spread."""
        with torch.inference_mode():
            return {kind: self._apart(model) for kind, model in self.models.items()}

    def _apart(self, model):
        """Of a picture that isn't square."""
        kept = []
        decoder = SimpleNamespace(decode=lambda latents: kept.append(latents) or latents)
        pipeline = self.base.base_of(model, self.text, self.vae, torch.float32).pipeline
        settings = self.pack("cldm_core.pipeline").Settings(3, 2.0, seed=7, width=128, height=64)
        replace(pipeline, autoencoder=decoder)("a hut", settings=settings, negative="no")
        prompts = [self.text.encode_from_tokens(one, True) for one in ("a hut", "no")]
        sides = [[[context, {"pooled_output": pooled}]] for context, pooled in prompts]
        empty = torch.zeros(1, 4, 8, 16)
        noise = comfy.sample.prepare_noise(empty, 7)
        how = (3, 2.0, "euler", "normal")
        theirs = comfy.sample.sample(model, noise, *how, *sides, empty, disable_pbar=True)
        ours = model.model.latent_format.process_out(kept[0])
        return distance(ours, theirs) / float(theirs.std())

    def own_sides(self):
        """The sizes where none is set, and what nodes say: with 0, and with another size."""

        def side(unet):
            held = SimpleNamespace(unet=SimpleNamespace(config=unet))
            return self.base.own_side(SimpleNamespace(pipeline=held))

        kinds = ("SD15", "SD21", "SD21_V", "SDXL")
        sides = {name: side(getattr(self.core, name)) for name in kinds}
        pairs = self.pack("cldm_core.training.circles").CirclePairs(4, 64)
        looked_at = self.pack("nodes.dataset").Dataset(pairs, side=32)
        own = self.run("own side", resolution=0, steps=1)
        other = self.run("other side", steps=1, dataset=looked_at)
        sides["embedded"] = about(own)["config"]["resolution"]
        return sides, [one.ui["text"][0] for one in (own, other)]

    def loaders(self):
        """As what the host's Load Diffusion Model takes the UNets of runs, by their keys."""

        def kind(config):
            with torch.device("meta"):
                state = self.core.ControlledUNet(config).state_dict()
            return type(comfy.model_detection.model_config_from_unet(state, "")).__name__

        return {name: kind(getattr(self.core, name)) for name in ("SD15", "SD21", "SDXL")}

    def unfit(self):
        """What is told of a CLIP and a VAE of other models, and how many pictures were encoded."""
        encode, encoded = self.vae.encode, []

        def told(name, channels, **given):
            def made(images):
                encoded.append(len(images))
                return encode(images).repeat(1, channels // 4, 1, 1)

            self.vae.encode = made
            try:
                return sentence(lambda: self.run(name, **given))
            finally:
                del self.vae.encode

        return told("CLIP", 4, clip=Wide(self.vae.patcher)), told("VAE", 16), encoded

    def velocity(self):
        """What the host takes SDXL's UNets of runs to predict, by what they predict."""
        saving, found = self.pack("cldm_core.training.saving"), {}
        write, saving.save = saving.save, lambda state, path, about: found.update(state)

        def kind(prediction):
            found.clear()
            config = replace(self.core.SDXL, prediction=prediction)
            with torch.device("meta"):
                unet = self.core.ControlledUNet(config)
            trained = SimpleNamespace(
                unet=unet, unet_state_dict_to_save=unet.state_dict, unet_metadata=dict
            )
            settings = SimpleNamespace(save_dtype="fp16")
            saving.save_unet(trained, settings, Path("net.safetensors"))
            return comfy.model_detection.model_config_from_unet(found, "").model_type(found).name

        try:
            return {prediction: kind(prediction) for prediction in ("eps", "v")}
        finally:
            saving.save = write


def about(output):
    """What the file of a run's net says of how it was trained."""
    return json.loads(output.args[0].source.metadata["cldm_core.training"])
