"""Shards when a process dies in the middle of one: of the only process, and of Ray's workers."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from controlnet_pack.annotators import ANNOTATORS, AnnotatorError, scale
from controlnet_pack.annotators.datasets import annotate_dataset
from controlnet_pack.annotators.datasets.shards import Maker
from controlnet_pack.annotators.scale import gpus_each

from .pictures import write

pytest.importorskip("webdataset", reason="needs webdataset")
pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")

ROOT = Path(__file__).resolve().parents[2]
# Read by every Python that starts: the first process that writes a fifth file into an archive dies.
DIES_ONCE = """
import os, signal, tarfile
add, added = tarfile.TarFile.addfile, []

def addfile(self, *args, **options):
    added.append(self)
    if len(added) == 5:
        try:
            os.close(os.open(os.environ["CLDM_TEST_DIED"], os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            pass
        else:
            os.kill(os.getpid(), signal.SIGKILL)
    return add(self, *args, **options)

tarfile.TarFile.addfile = addfile
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """Thirteen pictures, one of which is broken."""
    for seed in range(13):
        write(tmp_path / "pictures" / f"{seed:02d}.png", seed)
    (tmp_path / "pictures" / "07.png").write_text("text")
    return tmp_path / "pictures"


@pytest.fixture
def expected(folder, tmp_path) -> dict[str, bytes]:
    """The files of a run that nothing happens to."""
    annotate_dataset("canny", folder, tmp_path / "expected", shard_size=3)
    return content(tmp_path / "expected")


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(folder: Path, *options: str, name: str = "canny") -> subprocess.CompletedProcess:
    """The command line, in which one process dies in the middle of a shard, once."""
    place = folder.parent / "site"
    place.mkdir(exist_ok=True)
    (place / "sitecustomize.py").write_text(DIES_ONCE)
    told = {"PYTHONPATH": str(place), "CLDM_TEST_DIED": str(folder.parent / "died")}
    return subprocess.run(
        [
            *(sys.executable, "-m", "annotators", name, folder, folder.parent / "out"),
            *("--shards", "3", *options),
        ],
        cwd=ROOT,
        env={**os.environ, **told},
        capture_output=True,
        text=True,
    )


def test_after_a_kill_the_same_command_goes_on(folder, tmp_path, expected):
    assert run(folder).returncode == -9
    left = content(tmp_path / "out")
    assert "000000.tar" not in left  # six files; it died at the fifth
    assert any(".part." in name for name in left)
    again = run(folder)
    assert (again.returncode, again.stdout) == (0, "")
    assert again.stderr.startswith("canny: 1 pictures are not in the shards:\n07.png is no picture")
    assert content(tmp_path / "out") == expected


def test_ray_makes_what_one_process_makes_though_a_worker_is_killed(folder, tmp_path, expected):
    pytest.importorskip("ray.data", reason="needs ray[data], the extra scale")
    done = run(folder, "--workers", "2")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died").exists()
    assert "canny: 1 pictures are not in the shards:\n07.png is no picture" in done.stderr
    assert content(tmp_path / "out") == expected


@pytest.mark.slow
def test_what_workers_lack_is_told_in_a_sentence(folder, tmp_path, monkeypatch):
    pytest.importorskip("ray.data", reason="needs ray[data], the extra scale")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    monkeypatch.delenv("CLDM_ANNOTATORS", raising=False)
    done = run(folder, "--workers", "1", name="hed")
    assert done.returncode == 2
    said = "hed: ControlNetHED.pth (29 MB) isn't here and couldn't be downloaded: HF_HUB_OFFLINE is"
    assert said in done.stderr
    assert [*content(tmp_path / "out")] == ["annotated.json"]


@pytest.mark.parametrize(
    ("name", "device", "gpus", "each"),
    [
        ("hed", None, 2.0, 1),
        ("hed", "cuda", 2.0, 1),
        ("hed", "cpu", 2.0, 0),
        ("hed", None, 0.0, 0),
        ("canny", None, 2.0, 0),
    ],
)
def test_workers_get_a_gpu_if_they_use_one(name, device, gpus, each):
    assert gpus_each(Maker(ANNOTATORS[name], {}, device=device), gpus) == each


def test_workers_choose_no_gpu_by_its_number(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "packages", lambda: None)
    said = "The device is cuda:1, but Ray gives each worker a GPU of its own: say cuda."
    with pytest.raises(AnnotatorError, match=said):
        annotate_dataset("hed", folder, tmp_path / "out", workers=2, device="cuda:1")
    assert not (tmp_path / "out").exists()


def test_without_ray_it_says_how_to_install_it(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Install it with: pip install 'ray\[data\]'"):
        annotate_dataset("canny", folder, tmp_path / "out", workers=2)
