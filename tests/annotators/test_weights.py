"""Files of weights: found where users have them, fetched whole, refused where they are others."""

import os
import re
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from controlnet_pack.annotators import AnnotatorError, Weights, downloads, progress, weights
from controlnet_pack.annotators.errors import Unavailable

from .weights_cases import BYTES, NET, put


@pytest.mark.parametrize(
    "place",
    ["net.pth", "old_net.pth", "edges/net.pth", "someone/nets/edges/net.pth", "nets/edges/net.pth"],
)
def test_found_where_users_have_it(no_network, place):
    path = put(no_network / place)
    assert weights.locate(NET) == path


def test_later_folders_are_searched_too(no_network, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "folders", lambda: [no_network, tmp_path / "second"])
    path = put(tmp_path / "second" / "net.pth")
    assert weights.locate(NET) == path


def test_a_name_that_many_models_share_is_taken_only_from_its_repository_s_folder(no_network):
    common = replace(NET, file="model.safetensors", local_names=())
    put(no_network / "model.safetensors")
    assert not [*weights.places(common)]
    path = put(no_network / "someone" / "nets" / "model.safetensors")
    assert [*weights.places(common)] == [path]


@pytest.mark.parametrize("revision", ["a" * 40, "b" * 40], ids=["pinned", "newer"])
def test_what_the_hub_s_cache_has_is_taken(monkeypatch, tmp_path, revision):
    """Others fetch main, and so by now another commit, in which the file may be the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "folders", list)
    pinned = replace(NET, revision="a" * 40)
    assert not [*weights.places(pinned)]
    cached = tmp_path / "models--someone--nets"
    put(cached / "refs" / "main", revision.encode())
    path = put(cached / "snapshots" / revision / "edges" / "net.pth")
    assert weights.locate(pinned) == path


def test_the_environment_names_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("CLDM_ANNOTATORS", os.pathsep.join([str(tmp_path), str(tmp_path / "b")]))
    assert weights.environment_folders() == [tmp_path, tmp_path / "b"]
    monkeypatch.delenv("CLDM_ANNOTATORS")
    assert weights.environment_folders() == []


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (BYTES[:-1], "has 1048575 bytes, but net.pth has 1048576"),
        (BYTES[:-1] + b"x", "has another SHA-256 digest than net.pth is known to have"),
    ],
)
def test_a_user_s_file_with_other_content_is_refused_and_stays(no_network, content, what):
    path = put(no_network / "net.pth", content)
    sentence = (
        f"{path} {what}: it is damaged, or another file. "
        "net.pth (1 MB) isn't here and couldn't be downloaded: no. Get it from "
    )
    with hub_says(OSError("no")), pytest.raises(Unavailable, match=f"^{re.escape(sentence)}"):
        weights.locate(NET)
    assert path.read_bytes() == content


def test_a_file_with_other_content_hides_no_good_one(no_network, monkeypatch, tmp_path):
    bad = put(no_network / "net.pth", b"half")
    monkeypatch.setattr(weights, "folders", lambda: [no_network, tmp_path / "second"])
    good = put(tmp_path / "second" / "old_net.pth")
    assert weights.locate(NET) == good
    assert bad.read_bytes() == b"half"


def test_beside_a_file_with_other_content_the_right_one_is_fetched(no_network):
    put(no_network / "net.pth", b"half")
    with hub_says(put):
        assert weights.locate(NET) == no_network / "someone" / "nets" / "edges" / "net.pth"


def test_a_file_where_the_download_has_to_go_is_not_replaced(no_network):
    path = put(no_network / "someone" / "nets" / "edges" / "net.pth", b"mine")
    sentence = (
        f"{path} has 4 bytes, but net.pth has 1048576: it is damaged, or another file. "
        "Delete or move that file, and it is downloaded anew."
    )
    with hub_says(put), pytest.raises(Unavailable, match=f"^{re.escape(sentence)}$"):
        weights.locate(NET)
    assert path.read_bytes() == b"mine"


def cached(monkeypatch, folder: Path, **content: bytes) -> Weights:
    """The hub's cache has a file of each commit, one letter 40 times; the record's is "a"."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(weights, "folders", list)
    repository = folder / "models--someone--nets"
    for commit, data in content.items():
        put(repository / "refs" / "main", (commit * 40).encode())
        put(repository / "snapshots" / (commit * 40) / "edges" / "net.pth", data)
    return replace(NET, revision="a" * 40)


def test_a_newer_file_in_the_hub_s_cache_stays_and_the_pinned_one_is_fetched(monkeypatch, tmp_path):
    pinned = cached(monkeypatch, tmp_path, b=b"newer")
    fetched = tmp_path / "fetched"
    monkeypatch.setattr(downloads, "hf_hub_download", lambda *_, **__: str(put(fetched)))
    assert weights.locate(pinned) == fetched
    assert [path.read_bytes() for path in tmp_path.rglob("net.pth")] == [b"newer"]


def test_a_damaged_file_in_the_hub_s_cache_is_not_deleted(monkeypatch, tmp_path):
    pinned = cached(monkeypatch, tmp_path, a=b"half")
    (path,) = tmp_path.rglob("net.pth")
    monkeypatch.setattr(downloads, "hf_hub_download", lambda *_, **__: str(path))
    with pytest.raises(Unavailable, match=r"has 4 bytes.*Delete or move that file"):
        weights.locate(pinned)
    assert path.is_file()


def test_the_digest_is_read_once(no_network, monkeypatch):
    put(no_network / "net.pth")
    weights.locate(NET)
    monkeypatch.setattr(weights, "_digest", lambda _: pytest.fail("read again"))
    weights.locate(NET)


def test_the_digest_of_a_refused_file_is_read_once(no_network, monkeypatch):
    put(no_network / "net.pth", BYTES[:-1] + b"x")
    for digest in (weights._digest, lambda _: pytest.fail("read again")):
        monkeypatch.setattr(weights, "_digest", digest)
        with hub_says(OSError("no")), pytest.raises(Unavailable, match="SHA-256"):
            weights.locate(NET)


def test_a_changed_file_is_read_again(no_network):
    path = put(no_network / "net.pth")
    weights.locate(NET)
    path.write_bytes(BYTES[:-1] + b"x")
    with hub_says(OSError("no")), pytest.raises(AnnotatorError, match="SHA-256"):
        weights.locate(NET)


def test_given_files_are_taken_as_they_are(no_network, tmp_path):
    own = put(tmp_path / "own.pth", b"mine")
    with weights.given(NET, own):
        assert weights.locate(NET) == own
    with pytest.raises(AnnotatorError), hub_says(OSError("no")):
        weights.locate(NET)


@contextmanager
def hub_says(answer):
    """A download raises the answer, or calls it with where the file has to be."""

    def download(target, *_):
        if isinstance(answer, Exception):
            raise answer
        return answer(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(downloads, "into", download)
        yield


def test_downloaded_into_the_first_folder(no_network):
    with hub_says(put):
        path = weights.locate(NET)
    assert path == no_network / "someone" / "nets" / "edges" / "net.pth"
    assert [*weights.places(NET)] == [path]


def test_a_wrong_download_is_refused_and_removed(no_network):
    sentence = r"SHA-256.*The download was removed: try again"
    wrong = hub_says(lambda path: put(path, BYTES[:-1] + b"x"))
    with wrong, pytest.raises(AnnotatorError, match=sentence):
        weights.locate(NET)
    assert not [path for path in no_network.rglob("*") if path.is_file()]


def test_a_wrong_download_in_the_hub_s_cache_goes_with_its_bytes(no_network, tmp_path, monkeypatch):
    blob = tmp_path / "blobs" / "1"
    link = tmp_path / "snapshots" / "net.pth"

    def download(*_, **__):
        put(blob, b"other")
        link.parent.mkdir()
        link.symlink_to(blob)
        return str(link)

    monkeypatch.setattr(weights, "folders", list)
    monkeypatch.setattr(downloads, "hf_hub_download", download)
    with pytest.raises(AnnotatorError, match="has 5 bytes"):
        weights.locate(NET)
    assert not blob.exists()
    assert not link.is_symlink()


def test_offline_says_what_to_get_and_where_to_put_it(no_network, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sentence = (
        "net.pth (1 MB) isn't here and couldn't be downloaded: HF_HUB_OFFLINE is set. Get it from "
        "https://huggingface.co/someone/nets/blob/main/edges/net.pth and put it into "
        f"{no_network}."
    )
    refused = pytest.raises(AnnotatorError, match=f"^{re.escape(sentence)}$")
    with hub_says(ConnectionError("offline")), refused:
        weights.locate(NET)


def test_without_a_folder_the_variable_is_named(no_network, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights, "folders", list)
    monkeypatch.setattr(downloads, "hf_hub_download", full)
    sentence = r"No space left on device.*put it into a folder that CLDM_ANNOTATORS names"
    with pytest.raises(AnnotatorError, match=sentence):
        weights.locate(NET)


def test_other_errors_go_on_up(no_network):
    with hub_says(ZeroDivisionError()), pytest.raises(ZeroDivisionError):
        weights.locate(NET)


def test_weights_on_no_hub_name_their_page(no_network):
    page = "https://example.org/net"
    with pytest.raises(AnnotatorError, match=f"it is on no hub. Get it from {page} and put"):
        weights.locate(replace(NET, repository="", source=page))


def test_weights_that_may_not_be_used_commercially_can_be_switched_off(no_network, monkeypatch):
    research = replace(NET, commercial=False, licence="research only")
    put(no_network / "net.pth")
    assert weights.locate(research)
    monkeypatch.setenv("CLDM_COMMERCIAL_ONLY", "1")
    assert weights.locate(NET)
    sentence = (
        "net.pth may not be used commercially (research only), and such weights are switched off "
        "here: choose another annotator, or start without CLDM_COMMERCIAL_ONLY in the environment."
    )
    with pytest.raises(AnnotatorError, match=f"^{re.escape(sentence)}$"):
        weights.locate(research)


def test_a_listener_can_stop_a_download(no_network):
    class Interrupted(Exception):
        pass

    def stop(*_):
        raise Interrupted

    def download(path):
        bar = downloads._telling(lambda tqdm_class: None, path.name)["tqdm_class"]
        bar(total=len(BYTES), disable=True).update(4096)
        return put(path)

    with hub_says(download), progress.told(stop), pytest.raises(Interrupted):
        weights.locate(NET)
    assert not [*weights.places(NET)]
