"""Batches that the memory is too small for: tried again in halves, then told with a sentence."""

import weakref

import numpy as np
import pytest
import torch

from controlnet_pack.annotators import Annotator, AnnotatorError, Weights, annotate, keeper
from controlnet_pack.annotators import pose as poses
from controlnet_pack.annotators.keypoints import Frame
from controlnet_pack.annotators.memory import is_about_memory
from controlnet_pack.annotators.progress import told

NET = Weights("someone/nets", "net.pth", "main", None, None, "MIT", True)
PICTURES = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


class Device:
    """Memory for `room` pictures at once; counts what it is given."""

    def __init__(self, room: int) -> None:
        self.room, self.counts, self.failed = room, [], []

    def run(self, images: np.ndarray) -> np.ndarray:
        self.counts.append(len(images))
        assert not any(one() is not None for one in self.failed)
        activations = torch.zeros(3)
        if len(images) > self.room:
            self.failed.append(weakref.ref(activations))
            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return 255 - images


@pytest.fixture
def rooms(monkeypatch) -> list[bool]:
    """How the keeper was asked to make room, in turn."""
    asked = []
    monkeypatch.setattr(keeper, "make_room", lambda *, everything: asked.append(everything))
    return asked


def annotator(run, **options) -> Annotator:
    return Annotator("it", "It", "It does.", run, batched=True, **options)


def test_a_batch_is_tried_again_in_halves(rooms):
    device = Device(room=2)
    hints = annotator(device.run)(PICTURES)
    assert np.array_equal(hints, 255 - PICTURES)
    assert device.counts == [7, 4, 2, 2, 2, 1]
    assert rooms == [False, False]


def test_what_fits_is_done_once(rooms):
    device = Device(room=7)
    annotator(device.run)(PICTURES)
    assert device.counts == [7]
    assert rooms == []


def test_progress_goes_on_from_where_it_was(rooms):
    seen = []
    with told(lambda what, done, total: seen.append((done, total))):
        annotator(Device(room=4).run)(PICTURES)
    assert seen == [(0, 7), (0, 7), (4, 7), (7, 7)]


def test_a_picture_alone_is_tried_again_when_everything_else_is_gone(rooms, monkeypatch):
    device = Device(room=0)

    def make_room(*, everything):
        rooms.append(everything)
        device.room = int(everything)

    monkeypatch.setattr(keeper, "make_room", make_room)
    assert np.array_equal(annotator(device.run)(PICTURES[0]), 255 - PICTURES[0])
    assert device.counts == [1, 1]
    assert rooms == [True]


def test_a_picture_that_never_fits_is_told(rooms):
    device = Device(room=0)
    with pytest.raises(AnnotatorError) as caught:
        annotator(device.run)(PICTURES)
    assert str(caught.value) == (
        "Picture 1 doesn't fit into the memory of the device, even alone: lower the resolution, "
        "or choose another device."
    )
    assert device.counts == [7, 4, 2, 1, 1]


def test_other_errors_go_up_at_once(rooms):
    counts = []

    def run(images):
        counts.append(len(images))
        raise RuntimeError("the network is broken")

    with pytest.raises(RuntimeError, match="broken"):
        annotator(run)(PICTURES)
    assert counts == [7]


def test_poses_are_looked_for_in_halves_too(rooms, monkeypatch):
    device = Device(room=3)

    def detect(images, **_):
        return [Frame(5, 6) for _ in device.run(images)]

    monkeypatch.setitem(poses.DETECTORS, "openpose", detect)
    assert poses.poses_in(PICTURES, resolution=0) == [Frame(5, 6)] * 7
    assert device.counts == [7, 4, 2, 2, 2, 1]


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.84 GB)."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        Exception("BFCArena::AllocateRawInternal Failed to allocate memory for requested buffer"),
        RuntimeError("(-4:Insufficient memory) Failed to allocate 3221225472 bytes"),
        MemoryError(),
    ],
    ids=str,
)
def test_errors_about_memory(error):
    assert is_about_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("shapes differ"), AnnotatorError("out of memory")], ids=str
)
def test_errors_about_anything_else(error):
    assert not is_about_memory(error)


def test_the_default_keeper_lets_its_networks_go_only_if_all_room_is_needed():
    kept = keeper.Kept()
    kept.thing("a", object)
    kept.make_room(everything=False)
    assert kept.thing("a", lambda: "built again") != "built again"
    kept.make_room(everything=True)
    assert kept.thing("a", lambda: "built again") == "built again"


def test_without_weights_memory_is_told_in_the_same_way(monkeypatch):
    def full(*_):
        raise MemoryError

    monkeypatch.setattr("cv2.Canny", full)
    with pytest.raises(AnnotatorError, match=r"^Picture 1 doesn't fit into the memory"):
        annotate("canny", PICTURES[0])


@pytest.mark.parametrize(
    ("kind", "options", "counts"),
    [
        ("cpu", {}, [1, 1, 1]),
        ("cuda", {}, [3]),
        ("cpu", {"batched_on_cpu": True}, [3]),
    ],
)
def test_a_network_on_a_processor_gets_pictures_one_by_one(monkeypatch, kind, options, counts):
    """So that progress is told between them, and who listens can stop it."""
    monkeypatch.setattr(keeper, "best_device", lambda _: torch.device(kind))
    device, told_of = Device(room=3), []
    net = annotator(lambda images, device: run(images), weights=(NET,), **options)
    run = device.run
    with told(lambda what, done, total: told_of.append(done)):
        assert np.array_equal(net(PICTURES[:3]), 255 - PICTURES[:3])
    assert device.counts == counts
    assert told_of == [*np.cumsum([0, *counts])]
