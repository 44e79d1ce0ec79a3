"""Training in the real host: runs over HTTP on small circles, and what a run leaves in memory."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from controlnet_pack.annotators import annotate
from controlnet_pack.cldm_core import ControlNet, load_control
from controlnet_pack.cldm_core.checkpoint import read
from controlnet_pack.cldm_core.training.circles import CirclePairs

from .client import HostClient, Result
from .graphs import put
from .hosts import HostInstall
from .in_process import run_in_host
from .prompts import Prompt
from .server import HostServer

INSIDE = Path(__file__).parent / "inside" / "training.py"
MODEL, DATA, TRAIN = "1", "2", "3"
SIDE = 64
LONG, STEPS = 12, 4
EXACT = "save_dtype: fp32"
SCORED = "held_out: 2\nsample_steps: 2\nsave_dtype: fp32"


@pytest.fixture(scope="module", autouse=True)
def trains(install: HostInstall) -> None:
    """Skips where this host can't train."""
    if not install.has("accelerate"):
        pytest.skip("this host's Python lacks accelerate, without which nothing is trained")


def training(**train: Any) -> Prompt:
    """A run of a few steps on circles. data, annotator: of the data set; others: of the run."""
    data = {"data": "circles", "annotator": "the data's own hints", "circles": 32}
    data = {name: train.pop(name, value) for name, value in data.items()}
    links = {"model": [MODEL, 0], "clip": [MODEL, 1], "vae": [MODEL, 2], "dataset": [DATA, 0]}
    settings = {"name": "run", "kind": "controlnet", "resolution": SIDE, "steps": STEPS}
    settings |= {"batch_size": 2, "learning_rate": 1e-2, "precision": "fp32"}
    settings |= {"evaluate_every": 0, "seed": 0, "resume": False, "more": EXACT}
    return {
        MODEL: {"class_type": "CLDM_LoadTinyModel", "inputs": {}},
        DATA: {"class_type": "CLDM_ControlDataset", "inputs": {**data, "resolution": SIDE}},
        TRAIN: {"class_type": "CLDM_TrainControlNet", "inputs": {**links, **settings, **train}},
    }


def painted(prompt: Prompt, net: list[Any] | None, model: list[Any] | None = None) -> str:
    """Adds a picture of two steps that the net steers; gives the node that shows it."""
    texts = [[put(prompt, "CLIPTextEncode", text=text, clip=[MODEL, 1]), 0] for text in ("hut", "")]
    if net is not None:
        given = {"positive": texts[0], "negative": texts[1], "image": [DATA, 2], "control_net": net}
        how = {"strength": 1.0, "start_percent": 0.0, "end_percent": 1.0}
        apply = put(prompt, "ControlNetApplyAdvanced", **given, **how)
        texts = [[apply, 0], [apply, 1]]
    latent = put(prompt, "EmptyLatentImage", width=SIDE, height=SIDE, batch_size=1)
    how = {"seed": 7, "steps": 2, "cfg": 3.0, "sampler_name": "euler", "scheduler": "normal"}
    given = {"model": model or [MODEL, 0], "positive": texts[0], "negative": texts[1]}
    latents = put(prompt, "KSampler", latent_image=[latent, 0], denoise=1.0, **given, **how)
    decoded = put(prompt, "VAEDecode", samples=[latents, 0], vae=[MODEL, 2])
    return put(prompt, "PreviewImage", images=[decoded, 0])


def run(client: HostClient, prompt: Prompt) -> Result:
    result = client.queue(prompt)
    assert result.status == "success", result.message()
    return result


def net_file(host: HostServer, name: str) -> Path:
    return host.models("controlnet") / f"{name}.safetensors"


def run_folder(host: HostServer, name: str) -> Path:
    return host.base / "output" / "controlnet_training" / name


def saved(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {key: value.numpy() for key, value in read(path).tensors.items()}


# --- one run, and what it gives ---


@pytest.fixture(scope="module")
def scored(host: HostServer) -> tuple[Result, dict[str, np.ndarray[Any, Any]], int]:
    """A run with samples, and pictures: by its net, by none, and by its file in three loaders."""
    client = HostClient(host.url)
    start = len(host.log())
    prompt = training(name="scored", evaluate_every=2, more=SCORED)
    shown = {"net": painted(prompt, [TRAIN, 0]), "none": painted(prompt, None)}
    plot = put(prompt, "CLDM_LossPlot", run=[TRAIN, 4])
    shown["plot"] = put(prompt, "PreviewImage", images=[plot, 0])
    shown["samples"] = put(prompt, "PreviewImage", images=[plot, 1])
    result = run(client, prompt)
    pictures = {name: client.images(result, number)[0] for name, number in shown.items()}
    for loader in ("CLDM_LoadControlNet", "ControlNetLoader"):
        again = copy.deepcopy({key: prompt[key] for key in (MODEL, DATA)})
        load = put(again, loader, control_net_name="scored.safetensors")
        node = painted(again, [load, 0])
        pictures[loader] = client.images(run(client, again), node)[0]
    client.close()
    return result, pictures, start


def test_the_net_that_comes_out_steers_at_once(scored) -> None:
    _, pictures, _ = scored
    assert np.abs(pictures["net"].astype(int) - pictures["none"]).max() > 10


def test_its_file_loads_in_this_pack_and_in_the_host_and_is_the_same_net(scored) -> None:
    _, pictures, _ = scored
    assert np.array_equal(pictures["CLDM_LoadControlNet"], pictures["net"])
    apart = np.abs(pictures["ControlNetLoader"].astype(int) - pictures["net"])
    assert apart.max() <= 1


def test_the_node_tells_loss_score_and_file(scored) -> None:
    result, _, _ = scored
    (text,) = result.texts(TRAIN)
    assert f"Step {STEPS} of {STEPS}: loss 0." in text
    assert f"Step {STEPS}: mask IoU" in text
    assert "Saved as scored.safetensors." in text
    assert "Step 2" not in text, "of the scores only the last one stays"


def test_it_tells_them_while_it_trains(scored) -> None:
    result, _, _ = scored
    texts = result.applied[TRAIN]
    assert any("Step 0: mask IoU" in text for text in texts)
    assert all("Saved" not in text for text in texts)


def test_progress_and_samples_are_shown_at_the_node(scored) -> None:
    result, _, _ = scored
    assert (TRAIN, STEPS, STEPS) in result.progress
    assert result.previews == 3  # one for each evaluation


def test_plot_and_sample_sheet_are_pictures(scored, install: HostInstall) -> None:
    if not install.has("matplotlib"):
        pytest.skip("this host's Python lacks matplotlib, without which there is no plot")
    _, pictures, _ = scored
    assert pictures["plot"].std() > 5
    assert pictures["samples"].std() > 5


def test_nothing_is_complained_of(scored, host: HostServer) -> None:
    _, _, start = scored
    log = host.log(start)
    assert "Traceback" not in log
    assert "WARNING" not in log
    # The host's own loader finds no model of this width, and goes on.
    assert all("no match" in line for line in log.splitlines() if "ERROR" in line)


def test_the_file_says_what_it_was_trained_by(scored, host: HostServer) -> None:
    about = json.loads(read(net_file(host, "scored")).metadata["cldm_core.training"])
    assert about["step"] in (2, STEPS)
    assert about["config"]["lr"] == 1e-2
    assert "out" not in about["config"]


def test_a_second_run_of_a_name_leaves_the_first_as_it_is(scored, host: HostServer, client) -> None:
    before = saved(net_file(host, "scored"))
    result = run(client, training(name="scored", seed=1, steps=1))
    (text,) = result.texts(TRAIN)
    assert "There is a run scored already: this one is scored_2." in text
    assert "Saved as scored_2.safetensors." in text
    assert run_folder(host, "scored_2").is_dir()
    after = saved(net_file(host, "scored"))
    assert all(np.array_equal(after[key], value) for key, value in before.items())


# --- interrupts ---


def cut(client: HostClient, prompt: Prompt) -> Result:
    """A run of LONG steps that is interrupted once it has done three."""
    stops = [HostClient(client.url)]

    def after_the_third(node: str, value: int, most: int) -> None:
        if (node, most) == (TRAIN, LONG) and value >= 3 and stops:
            stops.pop().interrupt()

    return client.queue(prompt, on_progress=after_the_third)


def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(host, client) -> None:
    stopped = cut(client, training(name="cut", steps=LONG))
    assert stopped.status == "interrupted"
    (checkpoint,) = (run_folder(host, "cut") / "checkpoints").glob("step-*")
    step = int(checkpoint.name.removeprefix("step-"))
    assert 3 <= step < LONG
    assert f"Saved at step {step}: set name to cut and resume on" in stopped.applied[TRAIN][-1]
    assert not net_file(host, "cut").exists()

    result = run(client, training(name="cut", steps=LONG, resume=True))
    assert f"Going on from step {step}" in result.texts(TRAIN)[0]
    run(client, training(name="whole", steps=LONG))
    resumed, whole = saved(net_file(host, "cut")), saved(net_file(host, "whole"))
    assert resumed.keys() == whole.keys()
    assert [key for key in whole if not np.array_equal(resumed[key], whole[key])] == []


def test_an_interrupted_second_run_of_a_name_says_how_to_go_on(host, client) -> None:
    run(client, training(name="twice", steps=1))
    stopped = cut(client, training(name="twice", steps=LONG))
    assert "set name to twice_2 and resume on" in stopped.applied[TRAIN][-1]
    result = run(client, training(name="twice_2", steps=LONG, resume=True))
    assert "Going on from step" in result.texts(TRAIN)[0]


def test_an_interrupt_in_an_evaluation_saves_too(host, client) -> None:
    # Behind every step samples are taken, in which layers of newer hosts look for interrupts.
    prompt = training(name="late", steps=LONG, evaluate_every=1, more=SCORED)
    assert cut(client, prompt).status == "interrupted"
    assert list((run_folder(host, "late") / "checkpoints").glob("step-*"))


# --- other kinds, and a base that is trained too ---


@pytest.mark.parametrize(
    ("kind", "more", "named"),
    [("control_lora", "rank: 4", "Control-LoRA"), ("lllite", "rank: 8", "ControlNet-LLLite")],
)
def test_small_kinds_train_and_steer(host, client, kind: str, more: str, named: str) -> None:
    # Other tests of the same host have files of the kind's own name.
    prompt = training(name=f"small_{kind}", kind=kind, steps=2, more=more)
    load = {MODEL: prompt[MODEL], DATA: prompt[DATA]}
    nodes = [painted(prompt, net) for net in (None, [TRAIN, 0])]
    result = run(client, prompt)
    plain, steered = (client.images(result, node)[0] for node in nodes)
    assert np.abs(steered.astype(int) - plain).max() > 0

    loader = put(load, "CLDM_LoadControlNet", control_net_name=f"small_{kind}.safetensors")
    again = painted(load, [loader, 0])
    result = run(client, load)
    assert named in result.texts(loader)[0]
    assert np.array_equal(client.images(result, again)[0], steered)


def test_an_unlocked_decoder_comes_out_as_a_model(host, client) -> None:
    prompt = training(name="unlocked", steps=2, more=f"sd_locked: false\n{EXACT}")
    nodes = [painted(prompt, None), painted(prompt, None, [TRAIN, 1])]
    result = run(client, prompt)
    before, after = (client.images(result, node)[0].astype(int) for node in nodes)
    assert np.abs(after - before).max() > 5
    assert isinstance(load_control(net_file(host, "unlocked")), ControlNet)
    unet = host.models("diffusion_models") / "unlocked.safetensors"
    trained = run_folder(host, "unlocked") / "last_unet.safetensors"
    assert unet.read_bytes() == trained.read_bytes()
    assert "unlocked.safetensors in models/diffusion_models is the UNet" in result.texts(TRAIN)[0]


# --- data ---


def write_pictures(folder: Path, count: int) -> None:
    """Pictures with captions and no hints."""
    folder.mkdir(parents=True)
    pairs = CirclePairs(count, SIDE)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), pairs[index].read_target()[..., ::-1])
        (folder / f"{index}.txt").write_text(pairs[index].prompt, encoding="utf-8")


def test_an_annotator_makes_the_hints_and_scores(host, client) -> None:
    write_pictures(host.base / "input" / "discs", 8)
    given = {"data": "discs", "annotator": "canny", "evaluate_every": 2, "steps": 2}
    prompt = training(name="edges", **given, more=SCORED)
    node = put(prompt, "PreviewImage", images=[DATA, 2])
    pictures = put(prompt, "PreviewImage", images=[DATA, 1])
    result = run(client, prompt)
    assert "Step 2: edge F1" in result.texts(TRAIN)[0]
    hint, picture = (client.images(result, number)[0] for number in (node, pictures))
    assert np.array_equal(hint, annotate("canny", picture))
    assert read(net_file(host, "edges")).metadata["cldm_core.hint"] == "canny"

    given |= {"annotator": "scribble_xdog", "resume": True, "steps": 4}
    refused = client.queue(training(name="edges", **given, more=SCORED))
    assert refused.status == "error"
    assert "annotator annotators:canny (now annotators:scribble_xdog)" in refused.message()


def test_an_annotator_scores_circles_by_their_hints(client) -> None:
    given = {"annotator": "canny", "evaluate_every": 1, "steps": 1}
    result = run(client, training(name="scored_by_edges", **given, more=SCORED))
    assert "Step 1: edge F1" in result.texts(TRAIN)[0]


def test_hints_in_a_folder_of_their_own_and_columns_of_other_names(host, client) -> None:
    write_pictures(host.base / "input" / "apart", 4)
    hints = host.base / "input" / "edges_of_apart"
    hints.mkdir()
    grey = np.full((SIDE, SIDE, 3), 128, np.uint8)
    for index in range(4):
        cv2.imwrite(str(hints / f"{index}.png"), grey)
    prompt = {DATA: training(data="apart")[DATA]}
    prompt[DATA]["inputs"]["conditioning"] = "edges_of_apart"
    node = put(prompt, "PreviewImage", images=[DATA, 2])
    assert np.array_equal(client.images(run(client, prompt), node)[0], grey)

    rows = [{"picture": f"apart/{n}.png", "edges": f"edges_of_apart/{n}.png"} for n in range(4)]
    table = "".join(json.dumps({**row, "said": "a disc"}) + "\n" for row in rows)
    (host.base / "input" / "named.jsonl").write_text(table, encoding="utf-8")
    prompt[DATA]["inputs"] |= {"data": "named.jsonl", "conditioning": ""}
    prompt[DATA]["inputs"]["columns"] = "target=picture, hint=edges, prompt=said"
    result = run(client, prompt)
    assert result.texts(DATA)[0].startswith("4 pairs")
    assert np.array_equal(client.images(result, node)[0], grey)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"columns": "edges"}, "columns is 'edges', expected ROLE=NAME"),
        ({"conditioning": "nowhere"}, "There is no folder of hints 'nowhere': give its whole path"),
    ],
)
def test_wrong_columns_and_folders_of_hints_are_told(host, client, wrong, told: str) -> None:
    folder = host.base / "input" / "plain"
    if not folder.exists():
        write_pictures(folder, 2)
    prompt = {DATA: training(data="plain")[DATA]}
    prompt[DATA]["inputs"] |= wrong
    result = client.queue(prompt)
    assert result.status == "error"
    assert told in result.message()


def test_older_prompts_without_the_two_inputs_run(client) -> None:
    prompt = {DATA: training()[DATA]}
    assert {"conditioning", "columns"}.isdisjoint(prompt[DATA]["inputs"])
    run(client, prompt)


def making(name: str, **inputs: Any) -> Prompt:
    """Pairs of two pictures written by Make Dataset."""
    plain = {"width": SIDE, "height": SIDE, "batch_size": 2, "color": 0xAA5500}
    prompt = {"1": {"class_type": "EmptyImage", "inputs": plain}}
    hint = put(prompt, "EmptyImage", width=SIDE, height=SIDE, batch_size=1, color=0xFFFFFF)
    given = {"images": ["1", 0], "hints": [hint, 0], "prompts": "a\nb", "name": name}
    put(prompt, "CLDM_MakeDataset", **{**given, **inputs})
    return prompt


def test_a_data_set_grows_and_is_read_again(host, client) -> None:
    run(client, making("grown"))
    again = making("grown", prompts="c\nd")
    result = run(client, again)
    (text,) = result.texts(str(len(again)))
    assert text == "2 pairs written, 4 in controlnet_datasets/grown"
    reading = {DATA: training(data="controlnet_datasets/grown")[DATA]}
    put(reading, "PreviewImage", images=[DATA, 1])
    report = run(client, reading).texts(DATA)[0]
    assert report.startswith("4 pairs, all of them looked at.")


def test_a_folder_that_grew_is_looked_at_anew(client) -> None:
    run(client, making("watched"))
    reading = {DATA: training(data="controlnet_datasets/watched")[DATA]}
    assert run(client, reading).texts(DATA)[0].startswith("2 pairs")
    assert run(client, reading).cached == [DATA]
    run(client, making("watched", prompts="x"))
    assert run(client, reading).texts(DATA)[0].startswith("4 pairs")


# --- what is refused ---


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"more": "learning_rat: 1"}, "There is no option 'learning_rat'"),
        ({"more": "accumulation"}, "more holds str, expected lines such as ema: 0.9999."),
        ({"more": "out: elsewhere"}, "more: out is set by the node's name, not here"),
        ({"more": "lr: 1"}, "more: lr is set by the node's learning_rate"),
        ({"more": "prediction: v"}, "more: prediction is set by what is connected to the node"),
        ({"more": "init: none.pth"}, "more: init is 'none.pth', and there is no such net: give"),
        ({"name": "../x"}, "The run can't be called '../x'"),
        ({"name": " "}, "The run can't be called ' '"),
        ({"resolution": 72}, "resolution is 72"),
        ({"data": "nowhere"}, "There is no data set 'nowhere'"),
        ({"kind": "lllite", "more": "sd_locked: maybe"}, "sd_locked"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(host, client, wrong, told: str) -> None:
    start = len(host.log())
    result = client.queue(training(**{"name": "refused", **wrong}))
    assert result.status == "error"
    assert told in result.message()
    assert "\n" not in result.message()
    assert not run_folder(host, "refused").exists()
    assert "WARNING:" not in host.log(start)


def test_pairs_must_fit(client) -> None:
    result = client.queue(making("unfit", prompts="a\nb\nc"))
    assert result.message() == (
        "There are 2 pictures and 3 lines of prompts: give one for each, or one for all."
    )


def test_a_run_that_is_not_there_is_told(client) -> None:
    prompt = {"1": {"class_type": "CLDM_LossPlot", "inputs": {"run": "no_such_run"}}}
    put(prompt, "PreviewImage", images=["1", 0])
    result = client.queue(prompt)
    assert result.status == "error"
    assert "There is no training run in" in result.message()


# --- in one process ---


@pytest.fixture(scope="module")
def inside(install: HostInstall, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What tests/host/inside/training.py found."""
    return run_in_host(install, INSIDE, folder=tmp_path_factory.mktemp(f"train-{install.version}"))


@pytest.fixture
def found(inside: dict[str, Any]) -> Callable[[str], Any]:
    """`found(name)`: what one case found; its traceback, where it failed."""

    def answer(name: str) -> Any:
        assert "failed" not in inside[name], inside[name]["failed"]
        return inside[name]["found"]

    return answer


def test_nothing_of_training_is_imported_before_a_node_runs(found) -> None:
    assert found("start") == []


def test_the_nodes_have_the_words_of_the_command_line(found) -> None:
    assert found("words") == [True, {"kind": True, "precision": True}]


def test_a_lora_on_the_model_is_in_what_is_trained_on(found) -> None:
    shift, others = found("lora")
    assert shift < 1e-4
    assert others == 0


def test_the_copy_can_be_trained_and_the_host_s_weights_stay(found) -> None:
    assert found("untouched") == {"inference": False, "same": True}


def test_nothing_of_a_run_stays_in_memory(found) -> None:
    alive, grown = found("memory")
    assert alive == []
    assert grown < 2_000_000


def test_the_model_that_comes_out_belongs_to_the_net_that_scored_best(found) -> None:
    best = found("best")
    assert (best["step"], best["decoder"]) == (1, 1)


def test_a_run_that_goes_on_without_evaluations_gives_its_last_net(found) -> None:
    assert found("best")["then"] == 3


def test_a_unet_of_an_earlier_run_is_not_taken_for_this_one_s(found) -> None:
    assert found("stale")


def test_a_net_that_was_not_scored_is_that_of_the_last_step(found) -> None:
    assert found("best")["unscored"] == [2, False]


def test_the_node_says_of_which_step_the_net_is_that_scored_best(found) -> None:
    said = found("best")["said"]
    assert "Saved as best.safetensors. It is the net after step 1, which scored best." in said


def test_a_net_in_half_precision_starts_from_all_digits_of_the_model(found) -> None:
    assert found("digits") == [0, "torch.bfloat16"]


def test_circles_are_drawn_as_large_as_they_are_trained_on(found) -> None:
    assert found("drawn") == [128, 128, 3]


def test_a_run_goes_on_without_matplotlib(found) -> None:
    text = found("no_matplotlib")
    assert text.count("The plot needs matplotlib, which is not installed") == 1
    assert "Saved as" in text


def test_a_missing_accelerate_is_told_before_anything_is_encoded(found) -> None:
    told, encoded = found("no_accelerate")
    assert told.startswith("CldmError: Training needs the package accelerate")
    assert encoded == 0


def test_what_a_model_predicts_is_told_by_its_sampling(found) -> None:
    assert found("predictions") == {
        "EPS": "eps",
        "V_PREDICTION": "v",
        "EDM": "refused",
        "CONST": "refused",
    }


def test_what_other_models_encoded_is_not_taken_from_the_cache(found) -> None:
    assert found("keys")["different"]


def test_a_lora_that_is_read_again_finds_what_it_encoded(found) -> None:
    assert found("keys")["read again"]


def test_whether_the_host_has_put_a_lora_in_is_nothing_to_the_cache(found) -> None:
    assert found("keys")["loaded"]


def test_made_hints_are_known_by_their_annotator_s_weights(found) -> None:
    assert found("makers") == [True, True]


@pytest.mark.parametrize(("schedule", "largest"), [("zero terminal SNR", "4518.8"), ("EDM", "120")])
def test_a_model_of_another_noise_schedule_is_refused(found, schedule, largest) -> None:
    told = found("schedules")
    assert told["SD"] == ""
    assert told[schedule] == (
        f"CldmError: This model has a noise schedule of its own (1000 steps up to a sigma of "
        f"{largest}), and training knows Stable Diffusion's alone (1000 up to 14.615): take a "
        f"model without zero terminal SNR or EDM, or remove the node that sets the sampling."
    )


def test_a_folder_is_taken_by_a_history_or_checkpoints_alone(found) -> None:
    taken = {"history.jsonl": True, "checkpoints/step-00000002": True}
    assert found("folders") == {"cache": False, **taken}


def test_the_models_that_evaluate_do_not_stay_loaded(found) -> None:
    assert found("unloaded") == {"1": [], "2": []}


def test_a_run_is_bound_to_its_model(found) -> None:
    base, told = found("other_base")
    assert base.startswith("TinyModel-")
    assert f"was started with base {base} (now TinyModel-" in told


@pytest.mark.parametrize(
    "changed", ["picture of a table", "a.png", "a.txt", "hints/a.png", "stray"]
)
def test_pairs_that_were_changed_are_looked_at_anew(found, changed: str) -> None:
    assert found("stamps")[changed]


@pytest.mark.parametrize("kind", ["eps", "v", "SDXL"])
def test_what_a_model_predicts_is_trained_for_and_noted(found, kind: str) -> None:
    prediction = "v" if kind == "v" else "eps"
    assert found("small_bases")[kind] == [prediction, prediction, prediction, True]


def test_sdxl_is_told_sizes_as_the_core_tells_them(found) -> None:
    assert found("sizes") < 1e-5


@pytest.mark.parametrize("kind", ["eps", "v", "SDXL"])
def test_samples_of_a_run_are_those_of_the_host_s_sampler(found, kind: str) -> None:
    assert found("samples")[kind] < 1e-4


def test_resolution_0_is_the_model_s_own_and_others_are_told(found) -> None:
    sides, (own, other) = found("own_sides")
    assert sides == {"SD15": 512, "SD21": 512, "SD21_V": 768, "SDXL": 1024, "embedded": 128}
    assert "resolution" not in own
    told = "resolution is 64, and models of this kind were made at 128: 0 takes that."
    assert told in other
    assert (
        "Control Dataset looked at the pairs for 32 pixels, and they are trained on at 64: set its "
        "resolution to 64, and it says which are too small."
    ) in other


def test_a_run_goes_on_from_a_net_by_its_name(found) -> None:
    name, apart, trained = found("init")
    assert name == "to go on from.safetensors"
    assert apart < 1e-6
    assert trained > 1e-4


def test_a_net_that_does_not_fit_on_the_disk_is_told_and_nothing_is_left(found) -> None:
    told, left = found("full_disk")
    assert told.startswith("CldmError: The run is complete, and what it trained is in ")
    assert "last.safetensors" in told
    assert "(No space left on device): make room" in told
    assert left == []


def test_the_host_knows_the_unets_that_were_trained_too(found) -> None:
    assert found("loaders") == {"SD15": "SD15", "SD21": "SD20", "SDXL": "SDXL"}


def test_parts_of_other_models_are_told_before_everything_is_encoded(found) -> None:
    clip, vae, encoded = found("unfit")
    assert clip == (
        "CldmError: This CLIP gives texts 256 wide, and the model reads texts 128 wide: connect "
        "the CLIP that belongs to the model."
    )
    assert vae == (
        "CldmError: This VAE gives latents of 16 channels, and the model reads latents of 4 "
        "channels: connect the VAE that belongs to the model."
    )
    assert encoded == [1, 1, 1, 1]


def test_the_host_knows_sdxl_s_unets_of_velocity(found) -> None:
    assert found("velocity") == {"eps": "EPS", "v": "V_PREDICTION"}


def test_shards_of_the_output_folder_are_found_and_scanned_once(found) -> None:
    runs, alike = found("shards")
    # Scans before and behind the run, and pairs: the stamp reads no header.
    assert runs == [[0, 2, 4], [2, 2, 4], [2, 3, 5]]
    assert alike == [True, False]
