"""Files of weights: found where users have them, fetched whole, refused where they are others."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest

from controlnet_pack.annotators import AnnotatorError, Weights, downloads, progress, weights

ROOT = Path(__file__).resolve().parents[2]
BYTES = bytes(range(256)) * 4096  # 1 MiB
NET = Weights(
    repository="someone/nets",
    file="edges/net.pth",
    revision="main",
    bytes=len(BYTES),
    sha256=hashlib.sha256(BYTES).hexdigest(),
    licence="MIT",
    commercial=True,
    local_names=("old_net.pth",),
)


def put(path: Path, content: bytes = BYTES) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


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
    assert weights.find(common) is None
    path = put(no_network / "someone" / "nets" / "model.safetensors")
    assert weights.find(common) == path


@pytest.mark.parametrize("revision", ["a" * 40, "b" * 40], ids=["pinned", "newer"])
def test_what_the_hub_s_cache_has_is_taken(monkeypatch, tmp_path, revision):
    """Others fetch main, and so by now another commit, in which the file may be the same."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(weights, "folders", list)
    pinned = replace(NET, revision="a" * 40)
    assert weights.find(pinned) is None
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
        "Delete or move that file, and it is downloaded anew."
    )
    with pytest.raises(AnnotatorError, match=f"^{re.escape(sentence)}$"):
        weights.locate(NET)
    assert path.read_bytes() == content


def test_the_digest_is_read_once(no_network, monkeypatch):
    put(no_network / "net.pth")
    weights.locate(NET)
    monkeypatch.setattr(weights, "_digest", lambda _: pytest.fail("read again"))
    weights.locate(NET)


def test_a_changed_file_is_read_again(no_network):
    path = put(no_network / "net.pth")
    weights.locate(NET)
    path.write_bytes(BYTES[:-1] + b"x")
    with pytest.raises(AnnotatorError, match="SHA-256"):
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
    assert weights.find(NET) == path


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


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of one file asks for; the first answer breaks off."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str | None]] = []
    breaks = 0
    content = BYTES

    def do_HEAD(self):
        self._answer(b"", 200, len(self.content))

    def do_GET(self):
        if "/resolve/" not in self.path:  # the client asks for other things too
            return self._answer(b"", 404, 0)
        wanted = self.headers.get("Range")
        Hub.asked.append(wanted)
        start = int(wanted.removeprefix("bytes=").partition("-")[0]) if wanted else 0
        rest = self.content[start:]
        sent = rest[: len(rest) // 2] if Hub.breaks else rest
        whole = len(self.content)
        part = f"bytes {start}-{whole - 1}/{whole}" if start else ""
        self._answer(sent, 206 if start else 200, len(rest), part)
        if Hub.breaks:
            Hub.breaks -= 1
            self.close_connection = True

    def _answer(self, content: bytes, status: int, length: int, part: str = ""):
        self.send_response(status)
        if part:
            self.send_header("Content-Range", part)
        self.send_header("Content-Length", str(length))
        self.send_header("ETag", '"1234"')
        self.send_header("X-Repo-Commit", "a" * 40)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        with suppress(ConnectionError):  # the client may go at any time
            self.wfile.write(content)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub():
    Hub.asked, Hub.breaks = [], 0
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.handle_error = lambda *_: None  # connections that end anyhow
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


FETCH = """
import json, sys
from annotators import AnnotatorError, Weights, progress, weights
told = []
def listen(*what):
    told.append(what)
    if what[1] >= int(sys.argv[2]):
        raise KeyboardInterrupt
net = Weights(**json.loads(sys.argv[1]))
with progress.told(listen):
    try:
        print(json.dumps({"path": str(weights.locate(net)), "told": told[-1]}))
    except AnnotatorError as error:
        print(json.dumps({"error": str(error)}))
    except KeyboardInterrupt:
        print(json.dumps({"stopped": told[-1]}))
"""


def fetch(
    endpoint: str, folder: Path, net: Weights = NET, stop: int = 1 << 40, **environment: str
) -> dict:
    """What a process with that hub as its mirror finds; it is stopped after that many bytes."""
    facts = {field: getattr(net, field) for field in NET.__dataclass_fields__}
    del facts["local_names"]  # a tuple, which JSON has not
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "CLDM_ANNOTATORS": str(folder / "own"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DOWNLOAD_TIMEOUT": "2",
        "PATH": "",
        **environment,
    }
    run = subprocess.run(
        [sys.executable, "-c", FETCH, json.dumps(facts), str(stop)],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_a_mirror_serves_the_file_and_progress_is_told(hub, tmp_path):
    found = fetch(hub, tmp_path)
    path = Path(found["path"])
    assert path.read_bytes() == BYTES
    assert path.is_relative_to(tmp_path / "own")
    assert found["told"] == ["net.pth", len(BYTES), len(BYTES)]


@pytest.fixture
def large(hub, monkeypatch) -> Weights:
    """A file of more than one of the pieces of 10 MiB that the hub's client writes."""
    monkeypatch.setattr(Hub, "content", BYTES * 24)
    return replace(NET, bytes=len(Hub.content), sha256=hashlib.sha256(Hub.content).hexdigest())


def assert_went_on(found: dict) -> None:
    """It is whole, and the first piece was fetched once."""
    assert Path(found["path"]).read_bytes() == Hub.content
    assert [*Path(found["path"]).parent.iterdir()] == [Path(found["path"])]
    assert Hub.asked == [None, f"bytes={10 << 20}-"]
    assert found["told"] == ["net.pth", len(Hub.content), len(Hub.content)]


def test_a_connection_that_breaks_is_taken_up_again(hub, tmp_path, large):
    Hub.breaks = 1
    assert_went_on(fetch(hub, tmp_path, large))


def test_a_stopped_download_goes_on_in_the_next_process(hub, tmp_path, large):
    stopped = fetch(hub, tmp_path, large, stop=12 << 20)
    assert stopped == {"stopped": ["net.pth", 20 << 20, len(Hub.content)]}
    assert not list(tmp_path.rglob("net.pth"))
    assert_went_on(fetch(hub, tmp_path, large))


def test_offline_nothing_is_asked(hub, tmp_path):
    found = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in found["error"]
    assert not Hub.asked


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
    assert weights.find(NET) is None
