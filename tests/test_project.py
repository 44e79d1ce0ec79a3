"""The project's files agree with one another."""

import re
import subprocess
from pathlib import Path

import pytest
import tomllib

from controlnet_pack.scripts import file_guide

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ROOT / "tests" / "requirements"
# Folders of the machine that a file was written on: they exist on no other.
MACHINE_PATH = re.compile(r"(?<![\w.])/(?:work|tmp|root|home)/\w")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def pyproject() -> dict:
    return tomllib.loads(text("pyproject.toml"))


def requirements(lines: list[str]) -> dict[str, str]:
    """Normalised names of packages to what follows the name; comments and -r lines left out."""
    wanted = [line.partition("#")[0].strip() for line in lines if not line.startswith("-r")]
    pairs = [re.fullmatch(r"([\w.-]+)(.*)", line).groups() for line in wanted if line]
    return {re.sub(r"[-_.]+", "-", name).lower(): rest for name, rest in pairs}


def lock(name: str) -> dict[str, str]:
    return requirements((LOCKS / name).read_text(encoding="utf-8").splitlines())


def test_registry_facts(pyproject):
    project, comfy = pyproject["project"], pyproject["tool"]["comfy"]
    assert project["name"] == "controlnet-cldm"
    assert re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert project["license"] == "GPL-3.0-or-later"
    assert project["urls"]["Repository"].startswith("https://")
    assert comfy["PublisherId"]
    assert comfy["DisplayName"] == "ComfyUI-CLDM"
    assert comfy["requires-comfyui"] == ">=0.3.64"


def test_licence_is_the_gpl():
    assert " ".join(text("LICENSE").split()[:6]) == "GNU GENERAL PUBLIC LICENSE Version 3,"


def test_requirements_are_the_dependencies(pyproject):
    dependencies = requirements(pyproject["project"]["dependencies"])
    assert requirements(text("requirements.txt").splitlines()) == dependencies
    assert "torch" not in dependencies


@pytest.mark.parametrize("name", ["demo.txt", "test.txt", "weights.txt"])
def test_locks_pin_everything(name):
    assert all(re.fullmatch(r"==[\w.]+", version) for version in lock(name).values())


def test_locks_hold_the_extras(pyproject):
    extras = pyproject["project"]["optional-dependencies"]
    assert requirements(extras["standalone"]).keys() <= lock("demo.txt").keys()
    assert requirements(extras["dev"]).keys() <= lock("test.txt").keys()
    both = lock("demo.txt").keys() | lock("test.txt").keys()
    assert requirements(extras["train"]).keys() <= both
    assert not lock("demo.txt").keys() & lock("test.txt").keys()


def test_changelog_starts_with_this_version(pyproject):
    headings = re.findall(r"^## (.+)$", text("CHANGELOG.md"), re.MULTILINE)
    for heading in headings:
        assert re.fullmatch(r"\[\d+\.\d+\.\d+\] - (\d{4}-\d\d-\d\d|Unreleased)", heading)
    assert headings[0].startswith(f"[{pyproject['project']['version']}]")


def test_changelog_uses_the_usual_kinds():
    kinds = set(re.findall(r"^### (.+)$", text("CHANGELOG.md"), re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("package", ["annotators", "cldm_core"])
def test_the_wheel_holds_all_that_a_package_reads(pyproject, package):
    patterns = pyproject["tool"]["setuptools"]["package-data"].get(package, [])
    held = {path for pattern in patterns for path in (ROOT / package).glob(pattern)}
    files = {path for path in (ROOT / package).rglob("*.*") if path.is_file()}
    assert {path for path in files - held if path.suffix not in (".py", ".pyc")} == set()


def test_every_module_has_its_line_in_the_guide():
    _, guide, _ = file_guide.split(text("CONTRIBUTING.md"))
    # Where this fails: python scripts/file_guide.py
    assert guide == file_guide.guide()


def test_what_tests_share_is_in_no_test_module():
    for path in (ROOT / "tests").rglob("*.py"):
        shared = re.findall(
            r"^from \.[\w.]*\btest_\w+ import", path.read_text("utf-8"), re.MULTILINE
        )
        assert not shared, path.name


def test_archive_leaves_the_tests_out():
    assert "tests/" in text(".comfyignore").splitlines()


def test_no_file_names_a_path_of_one_machine():
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout, so the project's own files can't be listed")
    for name in filter(None, listed.stdout.split("\0")):
        content = (ROOT / name).read_bytes()
        if b"\0" not in content:
            assert not MACHINE_PATH.findall(content.decode("utf-8")), name
