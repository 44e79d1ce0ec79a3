"""What `annotators.py` compares: each annotator, and who else makes the same hint."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

OURS, AUX, OPENCV = "ours", "controlnet-aux", "OpenCV"


@dataclass(frozen=True)
class Detector:
    """One of controlnet-aux's detectors.

    sizes: which of its arguments take the size of the picture; equal: whether its hint is ours, so
    that both can be compared.
    """

    module: str
    name: str
    call: Mapping[str, Any] = field(default_factory=dict)
    sizes: tuple[str, ...] = ("detect_resolution", "image_resolution")
    equal: bool = True


@dataclass(frozen=True)
class Case:
    """One annotator of this pack with its settings.

    Networks come in the order of their size, about.
    net: it runs a network; opencv: OpenCV's own calls make the same (`annotators_ours.py` has
    them); lacks: why the annotator can't be measured, if it can't.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    aux: Detector | None = None
    opencv: bool = False
    net: bool = False
    lacks: str = ""

    @property
    def annotator(self) -> str:
        """The annotator's name, which several cases may share."""
        return self.name.partition(",")[0]


NP = {"output_type": "np"}
ONLY_DETECT = ("detect_resolution",)
ONNX = "its weights are an .onnx file, which isn't made here"
TFLITE = "its weights are .tflite files, which aren't made here"


def soft(module: str, name: str, **call: Any) -> Detector:
    return Detector(module, name, {**call, **NP})


CASES = (
    Case(
        "canny",
        aux=soft("canny", "CannyDetector", low_threshold=100, high_threshold=200),
        opencv=True,
    ),
    Case("pyracanny"),
    Case("threshold"),
    Case("binary", opencv=True),
    Case("invert", opencv=True),
    Case("grey", opencv=True),
    Case("scribble"),
    Case("scribble_xdog"),
    Case(
        "lineart_standard",
        aux=Detector("lineart_standard", "LineartStandardDetector", NP, ONLY_DETECT),
    ),
    Case("line_segments", opencv=True),
    Case("blur", opencv=True),
    Case("tile", opencv=True),
    # Its flow is another one each time.
    Case("shuffle", aux=Detector("shuffle", "ContentShuffleDetector", NP, equal=False)),
    Case("recolor_luminance"),
    Case("recolor_intensity"),
    Case("color_grid", opencv=True),
    Case("inpaint"),
    Case("normal_from_depth"),
    Case("mask"),
    Case("hed", aux=soft("hed", "HEDdetector", safe=True), net=True),
    Case(
        "hed, scribble",
        {"safe": False, "scribble": True},
        aux=soft("hed", "HEDdetector", scribble=True),
        net=True,
    ),
    Case("pidinet", aux=soft("pidi", "PidiNetDetector", safe=True), net=True),
    Case("teed", aux=Detector("teed", "TEEDdetector", NP, ONLY_DETECT), net=True),
    Case("lineart", aux=soft("lineart", "LineartDetector"), net=True),
    Case("lineart_anime", aux=soft("lineart_anime", "LineartAnimeDetector"), net=True),
    Case("manga_line", net=True),
    Case("mlsd", aux=soft("mlsd", "MLSDdetector"), net=True),
    Case("midas", aux=soft("midas", "MidasDetector"), net=True),
    Case("midas_normal", aux=soft("midas", "MidasDetector", depth_and_normal=True), net=True),
    Case("normal_bae", aux=soft("normalbae", "NormalBaeDetector"), net=True),
    Case("depth_anything", net=True),
    Case("depth_anything_v2", net=True),
    Case("zoe", {"model": "nyu"}, aux=soft("zoe", "ZoeDetector"), net=True),
    Case("segments", net=True),
    Case("uniformer", net=True),
    Case(
        "openpose",
        {"hands": False, "face": False},
        aux=soft("open_pose", "OpenposeDetector"),
        net=True,
    ),
    Case("oneformer", net=True),
    Case("oneformer, coco", {"model": "coco"}, net=True),
    Case("dwpose", aux=soft("dwpose", "DWposeDetector"), net=True, lacks=ONNX),
    Case("animal_pose", net=True, lacks=ONNX),
    Case("salient", net=True, lacks=ONNX),
    Case("blazepose", net=True, lacks=TFLITE),
    Case("face_mesh", net=True, lacks=TFLITE),
    Case("person", net=True, lacks=TFLITE),
)
