"""Files from the hub: a mirror, what is gone on with, and several processes at once."""

import hashlib
import json
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import pytest
from filelock import FileLock

from controlnet_pack.annotators import Weights, downloads, progress, weights
from controlnet_pack.annotators.errors import Unavailable

from .weights_cases import BYTES, NET, put

ROOT = Path(__file__).resolve().parents[2]


class Hub(BaseHTTPRequestHandler):
    """As much of the hub as a download of one file asks for; the first answer breaks off."""

    protocol_version = "HTTP/1.1"
    asked: ClassVar[list[str | None]] = []
    breaks = 0
    content = BYTES
    guests = 1
    heads: ClassVar[list[None]] = []

    def do_HEAD(self):
        self._answer(b"", 200, len(self.content))
        Hub.heads.append(None)

    def do_GET(self):
        if "/resolve/" not in self.path:  # the client asks for other things too
            return self._answer(b"", 404, 0)
        until = time.monotonic() + 60
        while len(Hub.heads) < self.guests and time.monotonic() < until:
            time.sleep(0.01)
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
    Hub.asked, Hub.breaks, Hub.heads = [], 0, []
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
        print(json.dumps({"path": str(weights.locate(net)), "told": told[-1] if told else None}))
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


def test_of_two_processes_one_fetches_and_the_other_waits(hub, tmp_path, monkeypatch):
    monkeypatch.setattr(Hub, "guests", 2)
    with ThreadPoolExecutor() as pool:
        one, two = pool.map(lambda _: fetch(hub, tmp_path), range(2))
    assert one["path"] == two["path"]
    path = Path(one["path"])
    assert path.read_bytes() == BYTES
    assert [*path.parent.iterdir()] == [path]
    assert Hub.asked == [None]


def part_of(folder: Path, content: bytes) -> Path:
    return put(folder / "own" / "someone" / "nets" / "edges" / "net.pth.1234.part", content)


def test_what_is_larger_than_the_file_is_begun_anew(hub, tmp_path):
    part_of(tmp_path, BYTES + BYTES)
    found = fetch(hub, tmp_path)
    assert Path(found["path"]).read_bytes() == BYTES
    assert Hub.asked == [None]


def test_a_file_of_unknown_digest_has_the_size_that_the_hub_says(no_network, monkeypatch):
    known = SimpleNamespace(size=9, location="http://x/net.pth", etag="1")
    monkeypatch.setattr(downloads, "get_hf_file_metadata", lambda _: known)
    monkeypatch.setattr(downloads, "http_get", lambda _, out, **__: out.write(b"four"))
    unknown = replace(NET, bytes=None, sha256=None)
    with pytest.raises(Unavailable, match="couldn't be downloaded: 4 bytes came, expected 9"):
        weights.locate(unknown)
    assert not [*weights.places(unknown)]


def test_who_waits_for_another_process_is_told_and_can_stop(no_network, monkeypatch):
    known = SimpleNamespace(size=9, location="http://x/net.pth", etag="1")
    monkeypatch.setattr(downloads, "get_hf_file_metadata", lambda _: known)
    target = no_network / "net.pth"
    put(no_network / "net.pth.1.part", b"four")

    class Interrupted(Exception):
        pass

    def stop(*what):
        assert what == ("net.pth", 4, 9)
        raise Interrupted

    with FileLock(no_network / ".net.pth.lock"), ThreadPoolExecutor() as pool:

        def wait():
            with progress.told(stop):
                downloads.into(target, "someone/nets", "net.pth", "main")

        with pytest.raises(Interrupted):
            pool.submit(wait).result()


def test_of_those_who_fail_none_tries_beside_another(no_network, monkeypatch):
    """What is left is the part, and a hidden file by which the next ones wait for each other."""
    known = SimpleNamespace(size=9, location="http://x/net.pth", etag="1")
    monkeypatch.setattr(downloads, "get_hf_file_metadata", lambda _: known)
    alone = threading.Lock()

    def fail(*_, **__):
        assert alone.acquire(blocking=False)
        time.sleep(0.02)
        alone.release()
        raise ConnectionError("gone")

    monkeypatch.setattr(downloads, "http_get", fail)
    call = downloads.into, no_network / "net.pth", "someone/nets", "net.pth", "main"
    with ThreadPoolExecutor(6) as pool:
        tries = [pool.submit(*call) for _ in range(6)]
    assert [type(one.exception()) for one in tries] == [ConnectionError] * 6
    left = sorted(path.name for path in no_network.iterdir())
    assert left == [".net.pth.lock", "net.pth.1.part"]


def test_a_lock_that_another_process_removes_meanwhile_is_made_anew(no_network, monkeypatch):
    known = SimpleNamespace(size=4, location="http://x/net.pth", etag="1")
    monkeypatch.setattr(downloads, "get_hf_file_metadata", lambda _: known)
    target = put(no_network / "net.pth", b"here")

    class Removed(FileLock):
        tries = 0

        def acquire(self, *args, **options):
            Removed.tries += 1
            if Removed.tries == 1:
                raise FileNotFoundError
            return super().acquire(*args, **options)

    monkeypatch.setattr(downloads, "FileLock", Removed)
    assert downloads.into(target, "someone/nets", "net.pth", "main") == target
    assert Removed.tries == 2


def test_offline_nothing_is_asked(hub, tmp_path):
    found = fetch(hub, tmp_path, HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in found["error"]
    assert not Hub.asked
