"""The annotators inside the host: their nodes, its folders, its memory manager, its interrupts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, annotate

from ..annotators import line_nets
from .client import HostClient, Result
from .server import HostServer

(PIDINET,) = ANNOTATORS["pidinet"].weights  # of a net that is small at full size
NODE = "8"


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    """(64, 80, 3): soft noise and a square, with edges to be found."""
    picture = np.random.default_rng(0).integers(100, 140, (64, 80, 3), dtype=np.uint8)
    picture[16:48, 20:60] = (250, 30, 60)
    return picture


@pytest.fixture
def run(client: HostClient, host: HostServer, photo: np.ndarray) -> Callable[..., Result]:
    """What became of a prompt of one node that is given the photo."""

    def result(class_type: str, *, seen: Any = None, **inputs: Any) -> Result:
        name = host.save_input("photo.png", photo if seen is None else seen)
        prompt = {
            "1": {"class_type": "LoadImage", "inputs": {"image": name}},
            NODE: {"class_type": class_type, "inputs": {"image": ["1", 0], **inputs}},
            "9": {"class_type": "PreviewImage", "inputs": {"images": [NODE, 0]}},
        }
        return client.queue(prompt)

    return result


@pytest.fixture
def hint(client: HostClient, run: Callable[..., Result]) -> Callable[..., np.ndarray]:
    """The one picture that a node makes of the photo."""

    def picture(class_type: str, **inputs: Any) -> np.ndarray:
        result = run(class_type, **inputs)
        assert result.status == "success", result.message()
        (image,) = client.images(result, "9")
        return image

    return picture


def settings_of(name: str) -> dict[str, Any]:
    return {key: setting.default for key, setting in ANNOTATORS[name].settings.items()}


def test_every_annotator_is_a_node(client: HostClient) -> None:
    nodes = client.object_info()
    titles = {node["display_name"] for name, node in nodes.items() if name.startswith("CLDM_")}
    assert {f"{annotator.title} (CLDM)" for annotator in ANNOTATORS.values()} <= titles


def test_canny_from_a_prompt_that_is_older_than_its_resolution(hint, photo) -> None:
    given = {"low_threshold": 60, "high_threshold": 150}
    edges = hint("CLDM_Canny", **given)
    assert np.array_equal(edges, annotate("canny", photo, **given))
    assert 0 < edges.mean() < 255


def test_canny_at_a_resolution(hint, photo) -> None:
    given = {"low_threshold": 60, "high_threshold": 150, "resolution": 96}
    edges = hint("CLDM_Canny", **given)
    assert edges.shape == (96, 120, 3)
    assert np.array_equal(edges, annotate("canny", photo, **given))


@pytest.mark.parametrize("name", ["scribble_xdog", "lineart_standard", "shuffle", "color_grid"])
def test_annotate_makes_what_the_node_makes(hint, name: str) -> None:
    class_type = "CLDM_" + "".join(word.capitalize() for word in name.split("_"))
    by_name = hint("CLDM_Annotate", annotator=name, resolution=-1, settings="")
    assert np.array_equal(by_name, hint(class_type, **settings_of(name)))


def test_annotate_is_told_by_a_text_and_shows_what_it_was_told(run, client, photo) -> None:
    told = {"annotator": "canny", "resolution": 96, "settings": "low_threshold: 60"}
    result = run("CLDM_Annotate", **told)
    assert result.status == "success", result.message()
    (edges,) = client.images(result, "9")
    assert np.array_equal(edges, annotate("canny", photo, low_threshold=60, resolution=96))
    (shown,) = result.texts(NODE)
    assert "low_threshold: 60 (" in shown
    assert "high_threshold: 200 (" in shown
    assert "resolution: 96 (" in shown


@pytest.mark.parametrize(
    ("annotator", "settings", "sentence"),
    [
        ("canny", "low_threshold: 300", "low_threshold is 300, but it has to be from 0 to 255."),
        ("canny", "low_treshold: 30", "did you mean 'low_threshold'?"),
        ("inpaint", "", "inpaint needs a mask: white where it has to act."),
    ],
)
def test_annotate_refuses_with_a_sentence(run, annotator: str, settings: str, sentence) -> None:
    result = run("CLDM_Annotate", annotator=annotator, resolution=-1, settings=settings)
    assert result.status == "error"
    assert sentence in result.message()


PARTS = {"body": True, "hands": True, "face": True, "xinsir": False}


@pytest.mark.parametrize(
    ("class_type", "inputs", "file"),
    [
        ("CLDM_Hed", settings_of("hed"), "ControlNetHED.pth (29 MB)"),
        (
            "CLDM_DetectPose",
            {**PARTS, "detector": "openpose", "resolution": 64},
            "body_pose_model.pth (209 MB)",
        ),
    ],
)
def test_missing_weights_are_told_with_their_folder(
    run, host: HostServer, class_type: str, inputs: dict[str, Any], file: str
) -> None:
    result = run(class_type, **inputs)
    assert result.status == "error"
    assert f"{file} isn't here and couldn't be downloaded" in result.message()
    assert f"put it into {host.models('annotators')}." in result.message()


def write_weights(folder: Path) -> Path:
    """Seeded weights, where a download would put the public ones."""
    import torch

    place = folder / PIDINET.repository / PIDINET.file
    place.parent.mkdir(parents=True, exist_ok=True)
    torch.save(line_nets.weights("pidinet"), place)
    return place


def test_a_file_in_the_host_s_folder_is_looked_at(run, host: HostServer) -> None:
    path = write_weights(host.models("annotators"))
    result = run("CLDM_Pidinet", **settings_of("pidinet"))
    assert f"{path} has another SHA-256 digest than {path.name} is known" in result.message()


def test_cancel_is_honoured_between_pictures(client: HostClient) -> None:
    count = 4000
    empty = {"width": 64, "height": 64, "batch_size": count, "color": 0x808080}
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        NODE: {
            "class_type": "CLDM_Pyracanny",
            "inputs": {**settings_of("pyracanny"), "image": ["1", 0]},
        },
        "9": {"class_type": "PreviewImage", "inputs": {"images": [NODE, 0]}},
    }
    seen = []

    def cancel(node: str, value: int, total: int) -> None:
        if not seen:
            client.interrupt()
        seen.append((node, value, total))

    result = client.queue(prompt, on_progress=cancel)
    assert result.status == "interrupted"
    assert seen[0][0] == NODE
    assert {total for *_, total in seen} == {count}
    assert seen[-1][1] < count


def pose(width: int, height: int) -> dict[str, Any]:
    """OpenPose JSON of someone with a neck and a right shoulder."""
    points = [0, 0, 0, width / 2, height / 4, 1, width / 4, height / 4, 1] + [0, 0, 0] * 15
    people = [{"pose_keypoints_2d": points}]
    return {"people": people, "canvas_width": width, "canvas_height": height}


def test_a_pose_is_drawn_from_its_text(client: HostClient) -> None:
    inputs = {"text": json.dumps(pose(64, 96)), "width": 128, "height": 0}
    prompt = {
        NODE: {"class_type": "CLDM_PoseToImage", "inputs": {**inputs, **PARTS}},
        "9": {"class_type": "PreviewImage", "inputs": {"images": [NODE, 0]}},
        "10": {"class_type": "PreviewAny", "inputs": {"source": [NODE, 2]}},
    }
    result = client.queue(prompt)
    assert result.status == "success", result.message()
    (drawn,) = client.images(result, "9")
    assert drawn.shape == (192, 128, 3)
    assert drawn[48, 48].max() > 0
    assert drawn[150].max() == 0
    (text,) = result.texts("10")
    (frame,) = json.loads(text)
    assert frame["people"][0]["pose_keypoints_2d"][3:6] == [32, 24, 1]


IN_HOST = """
from pathlib import Path
import torch
import comfy.model_management as memory
keeper, weights = pack("annotators.keeper"), pack("annotators.weights")
(record,) = pack("annotators").ANNOTATORS["pidinet"].weights
node_module = pack("nodes.annotate")
nodes = {one.define_schema().node_id: one for one in node_module.ANNOTATOR_NODES}
devices, annotate = [], node_module.annotate
node_module.annotate = lambda *a, **k: (devices.append(str(k["device"])), annotate(*a, **k))[1]
loaded, tensors_of = [], keeper.tensors_of
keeper.tensors_of = lambda path: (loaded.append(path.name), tensors_of(path))[1]

def known():
    return [one for one in memory.current_loaded_models if one.model is not None]

def run(seed):
    pictures = torch.rand(2, 64, 80, 3, generator=torch.Generator().manual_seed(seed))
    told = {"safe": False, "scribble": False, "resolution": 64}
    return nodes["CLDM_Pidinet"].execute(pictures, **told).args[0]

with weights.given(record, Path(args["file"])):
    first, again, other = run(1), run(1), run(2)
    counted = known()
    size, total = counted[0].model_memory(), len(counted)
    del counted
    memory.unload_all_models()
    left, after = len(known()), run(1)
    back = len(known())
folders = [str(folder) for folder in weights.folders()]
report(
    total=total, size=size, loads=len(loaded), left=left, back=back, folders=folders,
    same=bool((first == again).all() and (first == after).all()),
    apart=float((first - other).abs().max()), shape=list(first.shape),
    keeper=type(keeper._keeper).__name__, devices=sorted(set(devices)), complaints=complaints,
)
"""


def test_the_host_s_memory_manager_has_the_networks(
    in_host: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = in_host(IN_HOST, {"file": str(write_weights(tmp_path))})
    tensors = line_nets.weights("pidinet").values()
    assert found["keeper"] == "HostKeeper"
    assert (found["loads"], found["total"], found["left"], found["back"]) == (1, 1, 0, 1)
    assert found["size"] == sum(value.numel() * value.element_size() for value in tensors)
    assert found["same"]
    assert found["apart"] > 0.01
    assert found["shape"] == [2, 64, 80, 3]
    assert found["folders"][0] == str(tmp_path / "base" / "models" / "annotators")
    assert found["devices"] == ["cpu"]  # as the host was told, whatever the machine has
    assert found["complaints"] == []
