"""The annotators inside the host: their nodes, its folders, its memory manager, its interrupts."""

import json
import os
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, annotate, keeper
from controlnet_pack.annotators.weights import given

from ..annotators import line_nets, tiny_nets
from .client import HostClient, Result
from .server import HostServer

(PIDINET,) = ANNOTATORS["pidinet"].weights  # of a net that is small at full size
DEPTH = ANNOTATORS["depth_anything"].weights[0]
NODE = "8"
COLOURS = count(1)


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
    os.truncate(path, PIDINET.bytes)  # of the public file's size: its digest is what differs
    result = run("CLDM_Pidinet", **settings_of("pidinet"))
    assert f"{path} has another SHA-256 digest than {path.name} is known" in result.message()


@pytest.fixture
def depth_file(host: HostServer) -> Iterator[Path]:
    """Where the host finds weights whose digest isn't known, so that seeded ones do."""
    path = host.models("annotators") / DEPTH.repository / DEPTH.file
    path.parent.mkdir(parents=True, exist_ok=True)
    yield path
    path.unlink()


def write_depth(path: Path, seed: int) -> None:
    """A small net's seeded weights; always of one size and date, so that it looks unchanged."""
    from safetensors.torch import save_file

    new = path.with_suffix(".new")  # what is loaded may still read the old file
    save_file(tiny_nets.depth_anything(seed), new)
    os.utime(new, (0, 0))
    new.replace(path)


def same(hint: np.ndarray, other: np.ndarray) -> bool:
    """Up to one grey level: sums run in another order on another number of threads."""
    return np.abs(hint.astype(int) - other).max() <= 1


@pytest.mark.parametrize("class_type", ["CLDM_DepthAnything", "CLDM_Annotate"])
def test_a_network_in_the_host_makes_what_the_core_makes(
    hint, photo, depth_file: Path, class_type: str
) -> None:
    write_depth(depth_file, 7)
    told = {"model": "small", "resolution": 0}
    if class_type == "CLDM_Annotate":
        inputs = {"annotator": "depth_anything", "resolution": 0, "settings": "model: small"}
    else:
        inputs = told
    (expected,) = by_the_core(depth_file, [photo], **told)
    assert len(np.unique(expected)) > 50
    assert same(hint(class_type, **inputs), expected)


@pytest.mark.parametrize(
    "told", [{"unload_models": True}, {"free_memory": True}], ids=lambda told: next(iter(told))
)
def test_a_network_is_loaded_once_and_let_go_when_the_host_is_told_to_free(
    hint, client: HostClient, photo, depth_file: Path, told: dict[str, bool]
) -> None:
    """What a file holds is seen at its next loading only: by then it has other weights."""
    settings = {"model": "small", "resolution": 0}
    shown, expected = [photo, photo[::-1].copy(), photo[:, ::-1].copy()], []
    client.free()
    let_the_host_look(client)
    for seed in (8, 7):
        write_depth(depth_file, seed)
        expected.insert(0, by_the_core(depth_file, shown, **settings))
    assert same(hint("CLDM_DepthAnything", seen=shown[0], **settings), expected[0][0])
    write_depth(depth_file, 8)
    assert same(hint("CLDM_DepthAnything", seen=shown[1], **settings), expected[0][1])
    assert not same(expected[0][1], expected[1][1])
    client.post("/free", told)
    let_the_host_look(client)
    assert same(hint("CLDM_DepthAnything", seen=shown[2], **settings), expected[1][2])


def by_the_core(path: Path, pictures: list[np.ndarray], **told: Any) -> list[np.ndarray]:
    """What Depth Anything makes of pictures without a host, loaded anew from the file."""
    before = keeper.use(keeper.Kept())
    with given(DEPTH, path):
        hints = [annotate("depth_anything", one, device="cpu", **told) for one in pictures]
    keeper.use(before)
    return hints


def let_the_host_look(client: HostClient) -> None:
    """Runs a prompt: after each the host does what it was told to free, if it hasn't yet."""
    empty = {"width": 16, "height": 16, "batch_size": 1, "color": next(COLOURS)}
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": empty},
        "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }
    assert client.queue(prompt).status == "success"


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
import gc, weakref
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

class Session:
    pass

with weights.given(record, Path(args["file"])):
    first, again, other = run(1), run(1), run(2)
    loads = len(loaded)
    counted = known()
    size, total = counted[0].model_memory(), len(counted)
    net = weakref.ref(counted[0].model.model.thing)
    del counted
    sessions = []
    for _ in range(2):
        with keeper.kept("a session", Session, None, 12345) as one:
            sessions.append(weakref.ref(one))
    same_session = sessions[0]() is sessions[1]() is one
    sizes = sorted(one.model_memory() for one in known())
    del one
    memory.unload_all_models()
    gc.collect()
    left, alive = len(known()), [ref() is not None for ref in (net, *sessions)]
    after = run(1)
    back = len(known())
    keeper.make_room(everything=False)
    kept_room = len(known())
    keeper.make_room(everything=True)
    all_room = len(known())
folders = [str(folder) for folder in weights.folders()]
report(
    total=total, size=size, sizes=sizes, rooms=[kept_room, all_room],
    loads=[loads, len(loaded)], left=left, alive=alive, back=back,
    folders=folders, same=bool((first == again).all() and (first == after).all()),
    apart=float((first - other).abs().max()), shape=list(first.shape), same_session=same_session,
    keeper=type(keeper._keeper).__name__, devices=sorted(set(devices)), complaints=complaints,
)
"""


def test_the_host_s_memory_manager_has_the_networks(
    in_host: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    found = in_host(IN_HOST, {"file": str(write_weights(tmp_path))})
    tensors = line_nets.weights("pidinet").values()
    assert found["keeper"] == "HostKeeper"
    assert (found["total"], found["left"], found["back"]) == (1, 0, 1)
    assert found["loads"] == [1, 2]  # of three runs, and of one more after the host unloaded it
    assert found["alive"] == [False] * 3
    assert found["same_session"]
    assert found["size"] == sum(value.numel() * value.element_size() for value in tensors)
    assert found["sizes"] == [12345, found["size"]]  # a session is as large as it is said to be
    assert found["rooms"] == [1, 0]  # what is left when the device's memory was too small
    assert found["same"]
    assert found["apart"] > 0.01
    assert found["shape"] == [2, 64, 80, 3]
    assert found["folders"][0] == str(tmp_path / "base" / "models" / "annotators")
    assert found["devices"] == ["cpu"]  # as the host was told, whatever the machine has
    assert found["complaints"] == []


FOLDERS = """
import runpy
from pathlib import Path
import folder_paths
reader = Path(folder_paths.__file__).parent / "utils" / "extra_config.py"
runpy.run_path(str(reader))["load_extra_path_config"](args["config"])
host_side = pack("nodes.host.annotators")
host_side.connect()
weights = pack("annotators.weights")
folders = [[str(folder) for folder in weights.folders()][:2]]
writable = host_side.is_writable
host_side.is_writable = lambda folder: folder.name == "share"
folders.append([str(folder) for folder in weights.folders()][:2])
report(folders=folders, writable=writable(Path(args["config"]).parent / "not" / "there"))
"""


def test_folders_of_extra_model_paths_come_after_the_host_s_own(in_host, tmp_path: Path) -> None:
    config, share = tmp_path / "extra_model_paths.yaml", tmp_path / "share"
    config.write_text(f"others:\n    base_path: {tmp_path}\n    annotators: share\n")
    own = tmp_path / "base" / "models" / "annotators"
    found = in_host(FOLDERS, {"config": str(config)})
    assert found["folders"][0] == [str(own), str(share)]
    # What can't be written to is looked into later, so that downloads don't go there.
    assert found["folders"][1] == [str(share), str(own)]
    assert found["writable"]  # since it can be made


def test_annotate_lists_what_every_annotator_can_be_told(client: HostClient) -> None:
    inputs = client.object_info()["CLDM_Annotate"]["input"]["required"]
    first, *lines = inputs["settings"][1]["tooltip"].splitlines()
    assert first.endswith("Empty leaves all as it is:")
    assert "canny - low_threshold: 100, high_threshold: 200" in lines
    assert "depth_anything_v2, depth_anything - model: small (small, base, large)" in lines
    told = {name for line in lines for name in line.partition(" - ")[0].split(", ")}
    assert told == {one.name for one in ANNOTATORS.values() if one.params}
    assert max(map(len, lines)) < 160


SWITCHED_OFF = """
import os
import torch
os.environ["CLDM_COMMERCIAL_ONLY"] = "1"
nodes = {one.define_schema().node_id: one for one in pack("nodes.annotate").ANNOTATOR_NODES}
records = pack("annotators").ANNOTATORS
poses = pack("nodes.pose").DetectPose.define_schema()

def said(name, **inputs):
    try:
        nodes[name].execute(torch.rand(1, 32, 40, 3), **inputs)
    except ValueError as error:
        return str(error)

def settings(name):
    return {key: setting.default for key, setting in records[name].settings.items()}

report(
    pidinet=said("CLDM_Pidinet", **settings("pidinet")),
    by_name=said("CLDM_Annotate", annotator="openpose", resolution=-1, settings=""),
    canny=said("CLDM_Canny", **settings("canny")),
    poses=[poses.description, next(one.default for one in poses.inputs if one.id == "detector")],
    descriptions={name: node.define_schema().description for name, node in nodes.items()},
    complaints=complaints,
)
"""


def test_what_is_not_for_commercial_use_can_be_switched_off(in_host) -> None:
    found = in_host(SWITCHED_OFF)
    off = (
        "and such weights are switched off here: choose another annotator, or start without "
        "CLDM_COMMERCIAL_ONLY in the environment."
    )
    name = PIDINET.name
    assert found["pidinet"].startswith(f"{name} may not be used commercially ({PIDINET.licence}),")
    assert found["pidinet"].endswith(off)
    assert found["by_name"].startswith("body_pose_model.pth may not be used commercially (CMU ")
    assert found["by_name"].endswith(off)
    assert found["canny"] is None
    description, detector = found["poses"]
    assert description.endswith(
        "Not for commercial use: the weights of openpose; switched off here, by "
        "CLDM_COMMERCIAL_ONLY."
    )
    assert detector == "dwpose"
    switched_off = "Switched off here, by CLDM_COMMERCIAL_ONLY."
    for annotator in ANNOTATORS.values():
        limited = [one.file for one in annotator.weights if not one.commercial]
        class_type = "".join(word.capitalize() for word in annotator.name.split("_"))
        description = found["descriptions"][f"CLDM_{class_type}"]
        assert description.endswith(switched_off) == bool(limited)
        assert all(file in description for file in limited)
    assert found["complaints"] == []


def test_nodes_name_the_files_that_are_not_for_commercial_use(client: HostClient) -> None:
    nodes = client.object_info()
    for class_type, file in (
        ("CLDM_Pidinet", PIDINET.file),
        ("CLDM_DepthAnythingV2", "depth_anything_v2_vitb.pth, depth_anything_v2_vitl.pth"),
    ):
        assert nodes[class_type]["description"].endswith(f"Not for commercial use: {file}.")
    detect = nodes["CLDM_DetectPose"]
    assert detect["description"].endswith("Not for commercial use: the weights of openpose.")
    assert detect["input"]["required"]["detector"][1]["default"] == "openpose"
