"""A ComfyUI server process of one test session: own folders, own port, its log in a file."""

import socket
import subprocess
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from urllib.error import URLError

import cv2
import numpy as np

from .client import HostClient
from .hosts import PACK, PACK_NAME, HostInstall, install_pack

FLAGS = (
    *("--cpu", "--use-pytorch-cross-attention", "--disable-auto-launch", "--disable-api-nodes"),
    *("--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK_NAME),
)


class HostServer:
    """`with HostServer(install, folder) as host:` runs one host until the block ends."""

    def __init__(
        self,
        install: HostInstall,
        folder: Path,
        *,
        pack: Path = PACK,
        flags: Sequence[str] = (),
    ) -> None:
        self.install, self.version = install, install.version
        self.base, self.log_file = folder / "base", folder / "host.log"
        for name in ("user", "input", "output", "temp", "models"):
            (self.base / name).mkdir(parents=True, exist_ok=True)
        install_pack(self.base / "custom_nodes", pack)
        self.url = f"http://127.0.0.1:{free_port()}"
        self.client = HostClient(self.url)
        self._environment = install.environment(folder / "standins")
        self._command = [str(install.python), "main.py", *FLAGS, *self._places(), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def _places(self) -> list[str]:
        port = self.url.rpartition(":")[2]
        database = f"sqlite:///{self.base / 'user' / 'comfyui.db'}"
        return [
            *("--listen", "127.0.0.1", "--port", port),
            *("--base-directory", str(self.base), "--database-url", database),
        ]

    def __enter__(self) -> "HostServer":
        with self.log_file.open("wb") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.install.root,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _wait_until_ready(self, timeout: float = 1200) -> None:
        """Poll /object_info until the host has loaded every node; its first answer takes long."""
        assert self._process is not None
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise RuntimeError(f"ComfyUI {self.version} ended at its start:\n{self.tail()}")
            try:
                with urllib.request.urlopen(f"{self.url}/object_info", timeout=60):
                    return
            except (URLError, OSError):
                time.sleep(0.2)
        raise TimeoutError(f"ComfyUI {self.version} did not answer in {timeout} s:\n{self.tail()}")

    def stop(self) -> None:
        """End the host: TERM (without a terminal it ignores INT), then KILL."""
        self.client.close()
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def log(self, start: int = 0) -> str:
        """What the host has logged, from a position that an earlier `len(host.log())` gave."""
        return self.log_file.read_text(encoding="utf-8", errors="replace")[start:]

    def tail(self, lines: int = 40) -> str:
        """The last lines of the log, for a failure's message."""
        return "\n".join(self.log().splitlines()[-lines:])

    def models(self, kind: str) -> Path:
        """A model folder of this host, such as `controlnet`; made if it isn't there."""
        folder = self.base / "models" / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def save_input(self, name: str, image: np.ndarray) -> str:
        """Write an (H, W, 3) RGB picture, uint8 or float in [0, 1], where LoadImage finds it."""
        if image.dtype != np.uint8:
            image = (np.clip(image, 0, 1) * 255).round().astype(np.uint8)
        if not cv2.imwrite(str(self.base / "input" / name), image[..., ::-1]):
            raise OSError(f"could not write the input picture {name}")
        return name


def free_port() -> int:
    """A port of the loopback device that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
