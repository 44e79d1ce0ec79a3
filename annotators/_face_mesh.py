"""Faces by MediaPipe's mesh (Kartynnik et al., 2019), drawn as its ControlNet was trained."""

from __future__ import annotations

from typing import Any

from ._blazepose import FACE_FINDER, meshes
from .base import RGB8, Annotator, Param
from .face_attention import opened
from .face_contours import draw_faces
from .tflite import networks, of_wheel

POINTS = of_wheel(
    "face_landmark",
    "face_landmark_with_attention",
    2495106,
    "e06a804e0144f9929eda782122916b35d60c697c3c9344013ca2bbe76a6ce2b4",
)
WEIGHTS = (FACE_FINDER, POINTS)


def face_mesh(image: RGB8, *, max_faces: int, min_confidence: float, device: Any) -> RGB8:
    """The faces of (H, W, 3), on black; always on the CPU."""
    with networks(WEIGHTS, device, opened={POINTS: opened}) as nets:
        finder, net = nets[FACE_FINDER], nets[POINTS]
        found = meshes(image, finder, net, most=max_faces, least=min_confidence)
        return draw_faces([points for points, _, _ in found], *image.shape[:2])


ANNOTATOR = Annotator(
    name="face_mesh",
    title="Face Mesh (MediaPipe)",
    description="Contours and pupils of faces, each part in its colour, on black, for the "
    "ControlNet mediapipe_face. Needs the package ai-edge-litert.",
    run=face_mesh,
    params={
        "max_faces": Param(10, 1, 50, "how many faces are drawn at the most, the surest first"),
        "min_confidence": Param(0.5, 0.1, 1.0, "how sure it has to be that something is a face"),
    },
    resolution=512,
    weights=WEIGHTS,
)
