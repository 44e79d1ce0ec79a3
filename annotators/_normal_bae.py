"""Surface normals by Bae et al. (2109.09881), in the colours of ScanNet."""

from __future__ import annotations

from typing import Any

from .base import RGB8, Annotator, Weights

WEIGHTS = Weights(
    repository="lllyasviel/Annotators",
    file="scannet.pt",
    revision="982e7edaec38759d914a963c48c4726685de7d96",
    bytes=None,
    sha256="03dbf1600c51ee3d45c29f77b77bf1a3b7a24c3452dba62a4ae658f37330c209",
    licence="MIT",
    commercial=True,
)


def normal_bae(images: RGB8, device: Any) -> RGB8:
    """Normals (N, H, W, 3) of pictures (N, H, W, 3): x, y and z as red, green and blue."""
    from .keeper import network
    from .nets.normal_bae import build, normals

    with network(WEIGHTS, build, device) as net:
        return normals(net, images)


ANNOTATOR = Annotator(
    name="normal_bae",
    title="Normals (BAE)",
    description="Which way every surface faces, in the colours that the normal ControlNets take.",
    run=normal_bae,
    resolution=512,
    batched=True,
    weights=(WEIGHTS,),
)
