"""Face meshes: the reference's pixels, how many faces, finer parts, real weights and pictures."""

import hashlib
import json
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest

from controlnet_pack.annotators import AnnotatorError, annotate, face_attention, tflite, weights
from controlnet_pack.annotators import _face_mesh as face_mesh
from controlnet_pack.annotators._blazepose import meshes
from controlnet_pack.annotators.errors import Unavailable
from controlnet_pack.annotators.face_attention import between, sight
from controlnet_pack.annotators.face_contours import PUPILS, draw_faces
from controlnet_pack.annotators.files import read_picture

from . import real_weights, standins

# What controlnet_aux draws, and the points that MediaPipe finds; see data/README.md.
GOLDEN = json.loads((Path(__file__).parent / "data" / "face_meshes.json").read_text())


def landmarks(seed: int) -> list[np.ndarray]:
    """Faces of MediaPipe's 478 points (478, 2), as shares: some beyond the picture, one small.

    Pupils: one where the picture begins, one where it ends, one beyond it, one 2 pixels inside.
    """
    rng = np.random.default_rng(seed)
    faces = [
        (middle + rng.uniform(-half, half, (478, 2))).astype(np.float32)
        for middle, half in (((0.5, 0.5), 0.55), ((0.3, 0.6), 0.25), ((0.7, 0.2), 0.04))
    ]
    faces[0][[468, 473]] = (0, 0.5), (0.999, 0.999)
    faces[1][[468, 473]] = (0.31, 0.62), (1, 0.5)
    return faces


def drawn(faces: list[np.ndarray], height: int, width: int) -> np.ndarray:
    return draw_faces([one.astype(np.float64) * (width, height) for one in faces], height, width)


def digest(picture: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(picture).tobytes()).hexdigest()


def face(side: float) -> np.ndarray:
    """Points (478, 2) so wide and high, with pupils of their own."""
    points = np.linspace((100, 100), (100 + side, 100 + side), 478)
    points[[468, 473]] = (150.7, 160.2), (180, 160)
    return points


@pytest.mark.parametrize("case", GOLDEN["drawings"], ids=lambda case: str(case["seed"]))
def test_drawing_is_the_references(case):
    found = drawn(landmarks(case["seed"]), case["height"], case["width"])
    colours = np.unique(found.reshape(-1, 3), axis=0)
    assert len(colours) == case["colours"] == 9  # six parts, two pupils, black
    assert digest(found) == case["sha256"]


@pytest.mark.parametrize(("sides", "is_drawn"), [((1, 0.99), False), ((1, 1), True)])
def test_a_face_that_is_low_or_narrow_is_left_out(sides, is_drawn):
    points = np.linspace((0, 0), (64, 64), 478) * sides
    assert draw_faces([points], 100, 100).any() == is_drawn
    assert draw_faces([points[:, ::-1]], 100, 100).any() == is_drawn


def test_pupils_are_squares_of_four_pixels_over_the_lines():
    hint = draw_faces([face(100)], 256, 256)
    assert (hint[158:162, 148:152] == (250, 200, 10)).all()
    assert (hint[158:162, 178:182] == (10, 200, 250)).all()
    assert not hint[157, 170:190].any()
    assert not hint[162, 170:190].any()


def test_a_sight_is_turned_as_its_ends_and_has_a_margin():
    """A rectangle of 8 x 4 around (10, 20), a quarter turned."""
    places = np.array([(8, 16), (12, 16), (12, 24), (8, 24)], np.float32)
    found = sight(places, np.array([10, 16]), np.array([10, 24]))
    middle, first, last = found.places(np.array([(8, 8), (0, 0), (16, 16)]))
    assert middle.tolist() == pytest.approx([10, 20])
    assert first.tolist() == pytest.approx([13, 14])  # 1.5 times as large, top left of what it sees
    assert last.tolist() == pytest.approx([7, 26])


def test_what_a_sight_sees_is_what_lies_there():
    """Features that say where they are, looked at cell by cell."""
    down, across = np.indices((48, 48), np.float32)
    places = np.array([(10, 20), (10 + 32 / 3, 20 + 32 / 3)])  # 16 cells with the margin
    found = sight(places, places[0], places[0] + (1, 0)).of(np.stack([across, down], axis=-1))
    left, top = places.mean(axis=0) - 8
    assert found.shape == (16, 16, 2)
    assert found[0, 0].tolist() == pytest.approx([left, top], abs=1e-4)
    assert found[15, 3].tolist() == pytest.approx([left + 3, top + 15], abs=1e-4)


def test_between_cells_and_beyond_them():
    features = np.arange(6.0).reshape(2, 3, 1)
    places = [(0, 0), (2, 1), (0.5, 0), (1, 0.25), (2.1, 0), (0, -0.1)]
    assert between(features, np.array(places)).ravel().tolist() == [0, 5, 0.5, 1.75, 0, 0]


def test_numbers_of_the_finer_points():
    """Each part has its own; the middle of an iris is what is drawn as a pupil."""
    parts = [face_attention._LIPS, face_attention._LEFT_EYE, face_attention._RIGHT_EYE]
    assert [len(one) for one in parts] == [80, 71, 71]
    assert len({number for one in parts for number in one}) == 80 + 71 + 71
    irises = face_attention.MESH, face_attention.MESH + face_attention.IRIS
    assert irises == PUPILS


@pytest.fixture
def crowd(monkeypatch):
    """Three faces that a network is 0.95, 0.8 and 0.3 sure of; hints are as bright as the count."""

    def counted(faces: list[np.ndarray], height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), len(faces), np.uint8)

    values, logits = np.zeros((896, 16), np.float32), np.full((896, 1), -9.0, np.float32)
    values[:, 2:4] = 40
    for row, column, share in ((3, 3, 0.95), (3, 12, 0.8), (12, 3, 0.3)):
        logits[2 * (16 * row + column)] = np.log(share / (1 - share))
    standins.face_mesh(monkeypatch)
    with face_mesh.networks((), None) as nets:
        monkeypatch.setitem(nets, face_mesh.FACE_FINDER, lambda _: [values, logits])
    monkeypatch.setattr(face_mesh, "draw_faces", counted)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 2),
        ({"max_faces": 1}, 1),
        ({"min_confidence": 0.9}, 1),
        ({"min_confidence": 0.1}, 3),
        ({"min_confidence": 0.1, "max_faces": 2}, 2),
        ({"min_confidence": 1.0}, 0),
    ],
)
def test_how_many_faces(crowd, settings, count):
    hint = annotate("face_mesh", np.zeros((128, 128, 3), np.uint8), resolution=0, **settings)
    assert hint.max() == count


def test_without_weights_it_says_where_they_are(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(tflite, "needed", lambda *_, **__: None)
    monkeypatch.setattr(tflite, "PACKAGE", "no_such_package")
    with pytest.raises(AnnotatorError, match=r"face_detection.*\.tflite .*pypi\.org/project/media"):
        annotate("face_mesh", np.zeros((8, 8, 3), np.uint8))


@pytest.mark.parametrize(
    ("module", "package"),
    [
        ("ai_edge_litert.schema_py_generated", "'ai-edge-litert>=1.2'"),
        ("flatbuffers", "flatbuffers"),
    ],
)
def test_a_package_too_old_to_take_a_network_apart_is_told(
    monkeypatch, no_network, tmp_path, module, package
):
    """The stand-ins are of a package that runs networks, and has no reader of them."""
    file = tmp_path / "net.tflite"
    file.write_bytes(b"net")
    for name in ("interpreter", "schema_py_generated"):
        monkeypatch.setitem(sys.modules, f"ai_edge_litert.{name}", MagicMock())
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(tflite, "PACKAGE", "no_such_package")
    with (
        weights.given(face_mesh.FACE_FINDER, file),
        weights.given(face_mesh.POINTS, file),
        pytest.raises(Unavailable) as caught,
    ):
        annotate("face_mesh", np.zeros((8, 8, 3), np.uint8))
    said = str(caught.value)
    assert said.startswith(f"This annotator needs the package {package}, which can't be imported")
    assert said.endswith(f"Install it with: pip install {package}")


@pytest.fixture
def real(monkeypatch):
    """MediaPipe's own weights."""
    pytest.importorskip("ai_edge_litert", reason="needs ai-edge-litert")
    for record in face_mesh.WEIGHTS:
        real_weights.file(f"mediapipe/modules/{record.file}")
    monkeypatch.setattr(weights, "folders", lambda: [real_weights.FOLDER])
    monkeypatch.setattr(tflite, "PACKAGE", "no_such_package")


def astronaut() -> np.ndarray:
    return pytest.importorskip("skimage.data", reason="needs scikit-image's pictures").astronaut()


PICTURES = {
    "astronaut": astronaut,
    "two_hands": lambda: read_picture(real_weights.file("two_hands.webp")),
}


def points_of(image: np.ndarray) -> list[np.ndarray]:
    """The points (478, 2) of each face."""
    opened = {face_mesh.POINTS: face_attention.opened}
    with tflite.networks(face_mesh.WEIGHTS, None, opened=opened) as nets:
        finder, net = nets[face_mesh.FACE_FINDER], nets[face_mesh.POINTS]
        return [points for points, _, _ in meshes(image, finder, net)]


@pytest.mark.weights
@pytest.mark.parametrize("name", GOLDEN["points"])
def test_points_are_mediapipes(real, name):
    """Lips, eyes and irises of what the network with attention finds, and some of the mesh."""
    image = PICTURES[name]()
    height, width = image.shape[:2]
    (found,) = points_of(image)
    expected = np.array(GOLDEN["points"][name]["places"])
    places = found[GOLDEN["points"][name]["numbers"]] / (width, height)
    assert np.abs(places - expected).max() * max(width, height) < 0.2  # pixels


@pytest.mark.weights
@pytest.mark.parametrize("angle", [1, 3])
def test_a_turned_face(real, angle):
    upright = astronaut()
    (expected,) = points_of(upright)
    found = points_of(np.ascontiguousarray(np.rot90(upright, angle)))
    for _ in range(angle):  # back again
        found = [np.stack([511 - one[:, 1], one[:, 0]], axis=-1) for one in found]
    assert min(np.abs(one - expected).mean() for one in found) < 8


@pytest.mark.weights
def test_two_faces_and_none(real):
    head = astronaut()[20:220, 120:320]
    pair = np.concatenate([head, head[:, ::-1]], axis=1)
    both, one = (annotate("face_mesh", pair, max_faces=most) for most in (10, 1))
    assert both.shape == (512, 1024, 3)
    assert both[:, :512].any()
    assert both[:, 512:].any()
    assert one[:, :512].any() != one[:, 512:].any()
    assert not annotate("face_mesh", np.full((64, 90, 3), 128, np.uint8)).any()
