"""What is trained: which weights change, and that what is saved loads again as it was."""

import json
from dataclasses import replace

import pytest
import torch

from controlnet_pack.cldm_core import (
    SD15,
    SDXL,
    TINY,
    CldmError,
    ControlledUNet,
    ControlLLLite,
    ControlNet,
    FamilyMismatch,
    add_control,
    difference,
    load_control,
    load_unet,
    tiny,
)
from controlnet_pack.cldm_core.checkpoint import save
from controlnet_pack.cldm_core.checkpoint.write import CONFIG_KEY
from controlnet_pack.cldm_core.control_lora import BoundControlNet
from controlnet_pack.cldm_core.training import lllite_for, make_trainable
from controlnet_pack.cldm_core.training.trainables import KINDS

from .training_cases import SMALL, gradients, kept, net_of, step_of, unet_of

CLASSES = {
    "controlnet": ControlNet,
    "control_lora": BoundControlNet,
    "lllite": ControlLLLite,
}


def trained(trainable, steps=2, **options):
    """After some steps of AdamW; only_mid_control as the trainable has it."""
    optimizer = torch.optim.AdamW(trainable.parameters(), lr=1e-2)
    options = {"only_mid_control": trainable.only_mid_control, **options}
    for _ in range(steps):
        optimizer.zero_grad()
        step_of().loss(trainable.unet, trainable.net, **options).backward()
        optimizer.step()
    return trainable


def output(unet, net, step=None):
    """What the UNet tells with the net's control."""
    step = step or step_of()
    control = net(step.latents, None, step.timesteps, step.context, hint=step.hint)
    steering = {"patches": control} if isinstance(control, tuple) else {"control": control}
    with torch.no_grad():
        return unet(step.latents, step.timesteps, step.context, **steering)


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_net_changes_nothing(kind):
    unet, step = unet_of(), step_of()
    trainable = make_trainable(kind, unet)
    plain = unet(step.latents, step.timesteps, step.context)
    assert torch.equal(output(trainable.unet, trainable.net), plain)
    assert isinstance(trainable.net, CLASSES[kind])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
def test_lean_layers_can_be_left_out(kind, checkpointing):
    torch.manual_seed(1)
    unet = unet_of()
    classes = [type(module) for module in unet.modules()]
    made = make_trainable(kind, unet, checkpointing=checkpointing)
    found = []
    for trainable in (made, made.plain()):
        with kept(trainable.unet, trainable.net) as saved:
            loss = step_of().loss(trainable.unet, trainable.net)
        loss.backward()
        alike = classes == [type(module) for module in trainable.unet.modules()]
        leaves = {type(m).__module__ for m in trainable.net.modules() if not list(m.children())}
        found.append((alike, leaves, saved.bytes, loss.item(), gradients(trainable.net)))
    (lean, _, few, loss, leaned), (plain, leaves, many, same, gradient) = found
    assert plain
    assert not lean
    assert not any("lean" in module for module in leaves)
    assert few < many
    assert loss == same
    assert leaned.keys() == gradient.keys()
    for name, value in gradient.items():
        torch.testing.assert_close(leaned[name], value, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_of_the_net_trains_and_none_of_the_unet(kind):
    unet = unet_of()
    base = {key: value.clone() for key, value in unet.state_dict().items()}
    trainable = make_trainable(kind, unet)
    start = {name: weight.detach().clone() for name, weight in trainable.net.named_parameters()}
    trained(trainable, steps=4)
    same = [n for n, w in trainable.net.named_parameters() if torch.equal(w, start[n])]
    assert same == []
    assert all(torch.equal(value, base[key]) for key, value in unet.state_dict().items())
    assert all(weight.grad is None for weight in unet.parameters())


@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "checkpointed"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_again_and_steers_alike(kind, checkpointing, tmp_path):
    trainable = trained(make_trainable(kind, unet_of(), checkpointing=checkpointing))
    path = tmp_path / "net.safetensors"
    save(trainable.state_dict_to_save(), path, trainable.metadata())
    loaded = load_control(path, base=unet_of())
    assert isinstance(loaded, CLASSES[kind])
    expected = trainable.net.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[key]) for key, value in loaded.state_dict().items())
    assert torch.equal(output(unet_of(), loaded), output(trainable.unet, trainable.net))


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_loads_without_its_metadata(kind):
    config = replace(TINY, context_dim=24)  # heads as wide as a file without metadata means
    trainable = make_trainable(kind, unet_of(config))
    loaded = load_control(trainable.state_dict_to_save(), base=unet_of(config))
    assert loaded.config == trainable.net.config


@pytest.mark.parametrize("kind", KINDS)
def test_training_goes_on_from_a_saved_net(kind, tmp_path):
    unet, path, step = unet_of(), tmp_path / "net.safetensors", step_of()
    first = trained(make_trainable(kind, unet))
    save(first.state_dict_to_save(), path, first.metadata())
    second = make_trainable(kind, unet, init=path)
    assert torch.equal(step.loss(second.unet, second.net), step.loss(first.unet, first.net))
    trained(second, steps=1)
    assert step.loss(second.unet, second.net) != step.loss(first.unet, first.net)
    assert all(map(torch.equal, load_control(path).parameters(), first.net.parameters()))


def test_a_state_dict_to_start_from_stays_as_it_is():
    config = replace(TINY, context_dim=24)
    state = net_of(config).state_dict()
    before = {key: value.clone() for key, value in state.items()}
    trainable = make_trainable("controlnet", unet_of(config), init=state)
    step = step_of(config)
    step.loss(trainable.unet, trainable.net).backward()
    torch.optim.SGD(trainable.parameters(), lr=0.1).step()
    assert all(torch.equal(value, before[key]) for key, value in state.items())


@pytest.mark.parametrize("kind", KINDS)
def test_losses_fall(kind):
    trainable = make_trainable(kind, unet_of())
    step = step_of()
    before = step.loss(trainable.unet, trainable.net)
    trained(trainable, steps=6)
    assert step.loss(trainable.unet, trainable.net) < before


@pytest.mark.parametrize("kind", KINDS)
def test_checkpointing_has_the_same_gradients(kind):
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        trainable = make_trainable(kind, unet_of(), checkpointing=checkpointing)
        for weight in trainable.parameters():
            weight.data.add_(torch.full_like(weight, 0.01))
        step_of().loss(trainable.unet, trainable.net).backward()
        found.append(gradients(trainable.net))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


def test_a_net_itself_is_trained_on():
    net = net_of()
    start = net.state_dict()["zero_convs.0.0.weight"].clone()
    trainable = trained(make_trainable("controlnet", unet_of(), init=net), steps=1)
    weight = net.state_dict()["zero_convs.0.0.weight"]
    assert torch.equal(trainable.net.state_dict()["zero_convs.0.0.weight"], weight)
    assert not torch.equal(weight, start)


def test_unlocked_the_decoder_trains_and_the_encoder_does_not():
    unet = unet_of()
    base = {key: value.clone() for key, value in unet.state_dict().items()}
    trainable = trained(make_trainable("controlnet", unet, sd_locked=False), steps=1)
    changed = {k for k, v in trainable.unet_state_dict_to_save().items() if not v.equal(base[k])}
    assert changed == {key for key in base if key.startswith(("output_blocks.", "out."))}


def test_an_unlocked_unet_is_saved_as_a_base(tmp_path):
    trainable = trained(make_trainable("controlnet", unet_of(), sd_locked=False), steps=1)
    path = tmp_path / "unet.safetensors"
    save(trainable.unet_state_dict_to_save(), path, trainable.unet_metadata())
    loaded, step = load_unet(path), step_of()
    inputs = step.latents, step.timesteps, step.context
    assert torch.equal(loaded(*inputs), trainable.unet(*inputs))


def test_a_locked_unet_is_not_saved():
    assert make_trainable("controlnet", unet_of()).unet_state_dict_to_save() is None


def test_only_mid_control_trains_all_but_the_skips_zero_convolutions():
    net = net_of()
    trainable = make_trainable("controlnet", unet_of(), init=net, only_mid_control=True)
    start = {key: value.clone() for key, value in net.state_dict().items()}
    trained(trainable, steps=1)
    same = {key for key, value in net.state_dict().items() if torch.equal(value, start[key])}
    assert same == {key for key in start if key.startswith("zero_convs.")}


@pytest.mark.parametrize("kind", ["controlnet", "control_lora"])
def test_only_mid_control_steers_as_it_was_trained(kind, tmp_path):
    path, step = tmp_path / "net.safetensors", step_of()
    first = trained(make_trainable(kind, unet_of()))
    save(first.state_dict_to_save(), path, first.metadata())
    second = trained(make_trainable(kind, unet_of(), init=path, only_mid_control=True), steps=1)
    save(second.state_dict_to_save(), path, second.metadata())
    used = load_control(path, base=unet_of())
    as_trained, as_used = (
        step.loss(unet_of(), used, only_mid_control=only) for only in (True, False)
    )
    assert torch.equal(as_trained, as_used)
    assert not torch.equal(output(unet_of(), used), output(unet_of(), first.net))


@pytest.mark.parametrize("goes_on", [False, True], ids=["new", "init"])
def test_files_say_what_the_base_predicts(goes_on):
    unet = unet_of(replace(SMALL, prediction="v"))
    trainable = make_trainable("controlnet", unet, init=net_of() if goes_on else None)
    net, base = (
        json.loads(metadata[CONFIG_KEY])
        for metadata in (trainable.metadata(), trainable.unet_metadata())
    )
    assert net["unet"]["prediction"] == base["prediction"] == "v"


def test_parameters_are_those_that_require_gradients():
    trainable = make_trainable("controlnet", unet_of(), sd_locked=False, only_mid_control=True)
    both = [*trainable.net.parameters(), *trainable.unet.parameters()]
    assert len(trainable.parameters()) == sum(weight.requires_grad for weight in both)
    assert len(set(map(id, trainable.parameters()))) == len(trainable.parameters())


def test_a_control_lora_is_cheap():
    unet = unet_of()
    lora = make_trainable("control_lora", unet, rank=2)
    whole = make_trainable("controlnet", unet)
    counts = [sum(w.numel() for w in one.parameters()) for one in (lora, whole)]
    assert counts[0] < 0.5 * counts[1]
    assert lora.net.state_dict()["middle_block.0.in_layers.2.down"].shape[0] == 2


def test_a_control_lora_follows_its_base_when_that_is_moved():
    unet = unet_of()
    trainable = make_trainable("control_lora", unet)
    unet.double()
    trainable.net.double()
    step = step_of().to(torch.float64)
    plain = unet(step.latents, step.timesteps, step.context)
    torch.testing.assert_close(output(trainable.unet, trainable.net, step), plain)


@pytest.mark.parametrize(("unet", "modules"), [(SDXL, 136), (SD15, 28)], ids=["sdxl", "sd15"])
def test_an_lllite_has_kohyas_modules(unet, modules):
    config = lllite_for(unet)
    depths = {part.path.split(".1.tr")[0]: part.depth for part in config.modules}
    assert len(config.modules) == modules
    for block, depth in depths.items():
        number = int(block.rpartition("_blocks.")[2]) if "_blocks." in block else 99
        assert depth == (1 if number <= 2 else 2 if number <= 5 else 3)


def test_nets_in_half_precision_become_fp32():
    unet = unet_of().bfloat16()
    trainable = make_trainable("controlnet", unet)
    assert {weight.dtype for weight in trainable.parameters()} == {torch.float32}
    assert next(unet.parameters()).dtype == torch.bfloat16


def test_the_embedded_model_trains_on():
    unet = load_unet(tiny.weights("unet"), dtype=torch.float32)
    trainable = make_trainable("controlnet", unet, init=tiny.weights("canny"))
    loss = step_of(unet.config).loss(trainable.unet, trainable.net)
    loss.backward()
    assert all(weight.grad is not None for weight in trainable.parameters())


REFUSED = {
    "kind": (lambda: make_trainable("t2i", unet_of()), "kind to train is 't2i'"),
    "rank": (lambda: make_trainable("controlnet", unet_of(), rank=4), "rank is 4"),
    "rank 0": (lambda: make_trainable("lllite", unet_of(), rank=0), "rank is 0"),
    "middle": (
        lambda: make_trainable("lllite", unet_of(), only_mid_control=True),
        "only_mid_control is on",
    ),
    "other net": (
        lambda: make_trainable("lllite", unet_of(), init=net_of()),
        "is a ControlNet, and a ControlNet-LLLite is to be trained",
    ),
    "difference": (
        lambda: make_trainable(
            "controlnet",
            unet_of(TINY),
            init=difference(net_of(TINY).state_dict(), unet_of(TINY).state_dict()),
        ),
        "apply a difference file to its base first",
    ),
    "half": (
        lambda: make_trainable("controlnet", unet_of().half(), sd_locked=False),
        "loses small steps",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_what_can_not_be_trained(name):
    make, message = REFUSED[name]
    with pytest.raises(CldmError, match=message):
        make()


def test_refuses_a_net_of_another_family():
    other = replace(SMALL, context_dim=40)
    with pytest.raises(FamilyMismatch):
        make_trainable("controlnet", unet_of(), init=net_of(other))


def test_refuses_weights_made_under_inference_mode():
    with torch.inference_mode():
        unet = ControlledUNet(SMALL)
    with pytest.raises(CldmError, match="made under"):
        make_trainable("controlnet", unet)


def test_add_control_and_make_trainable_start_alike():
    unet = unet_of()
    encoder = {k: v for k, v in add_control(unet).state_dict().items() if "hint" not in k}
    found = make_trainable("controlnet", unet).state_dict_to_save()
    assert all(torch.equal(found[key], value) for key, value in encoder.items())
