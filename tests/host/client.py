"""A client of ComfyUI's HTTP API and websocket: queue a prompt, follow it, fetch what it made."""

import json
import time
import urllib.request
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode

import cv2
import numpy as np

Json = dict[str, Any]
Progress = Callable[[str, int, int], None]


@dataclass
class Result:
    """What became of one prompt."""

    prompt_id: str
    status: str = "running"  # then: success, error, interrupted, rejected
    outputs: dict[str, Json] = field(default_factory=dict)  # node id -> what its ui showed
    executed: list[str] = field(default_factory=list)  # node ids that ran, in order
    cached: list[str] = field(default_factory=list)
    progress: list[tuple[str, int, int]] = field(default_factory=list)  # node id, value, max
    previews: int = 0  # pictures that the sampler sent on its way
    applied: dict[str, list[str]] = field(default_factory=dict)  # node id -> reports of its control
    error: Json | None = None  # the host's own record: exception_message, node_id, traceback, ...

    def texts(self, node_id: str) -> list[str]:
        """The texts that a node shows."""
        text = self.outputs.get(node_id, {}).get("text", [])
        return [text] if isinstance(text, str) else [str(part) for part in text]

    def message(self) -> str:
        """The error in one line, or nothing."""
        if self.error is None:
            return ""
        return str(self.error.get("exception_message") or json.dumps(self.error)).strip()


class HostClient:
    """One connection to a running host; `queue` is all that most tests need."""

    def __init__(self, url: str, *, timeout: float = 600) -> None:
        self.url, self.timeout = url, timeout
        self.client_id = uuid.uuid4().hex
        self._socket: Any = None

    def object_info(self, node: str | None = None) -> Json:
        """The host's description of all nodes, or of one (its bare record)."""
        if node is None:
            return self.get("/object_info")
        return self.get(f"/object_info/{node}")[node]

    def queue(self, prompt: Mapping[str, Any], *, on_progress: Progress | None = None) -> Result:
        """Run an API prompt to its end. `on_progress(node, value, max)` is called on the way."""
        self.connect()
        result = self.submit(prompt)
        if result.status == "running":
            self._follow(result, on_progress)
        return result

    def submit(self, prompt: Mapping[str, Any]) -> Result:
        """Queue an API prompt and return at once; a prompt that doesn't validate is `rejected`."""
        try:
            answer = self.post("/prompt", {"prompt": prompt, "client_id": self.client_id})
        except HTTPError as refused:
            with refused:
                return Result("", status="rejected", error=json.loads(refused.read()))
        return Result(answer["prompt_id"])

    def interrupt(self) -> None:
        """Stop what runs now."""
        self.post("/interrupt", {})

    def history(self, prompt_id: str) -> dict[str, Any]:
        """The outputs of a prompt that has ended, by node; the host writes them after its end."""
        deadline = time.monotonic() + self.timeout
        while prompt_id not in (found := self.get(f"/history/{prompt_id}")):
            if time.monotonic() > deadline:
                raise TimeoutError(f"the prompt was not recorded in {self.timeout} s")
            time.sleep(0.05)
        outputs: dict[str, Any] = found[prompt_id]["outputs"]
        return outputs

    def free(self) -> None:
        """Drop the cached outputs and unload the models, so that the next prompt starts fresh."""
        self.post("/free", {"unload_models": True, "free_memory": True})

    def images(self, result: Result, node_id: str | None = None) -> list[np.ndarray]:
        """The pictures that a node, or every node, showed: (H, W, C) uint8, RGB(A)."""
        nodes = [node_id] if node_id else list(result.outputs)
        records = [r for n in nodes for r in result.outputs.get(n, {}).get("images", [])]
        return [self.image(record) for record in records]

    def image(self, record: Mapping[str, str]) -> np.ndarray:
        """Fetch one picture by the record (filename, subfolder, type) that the host sent."""
        encoded = np.frombuffer(self.read(f"/view?{urlencode(record)}"), np.uint8)
        pixels = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        if pixels is None:
            raise ValueError(f"the host's picture {record} can't be decoded")
        order = cv2.COLOR_BGRA2RGBA if pixels.shape[-1] == 4 else cv2.COLOR_BGR2RGB
        return cv2.cvtColor(pixels, order)

    def connect(self) -> None:
        """Open the websocket, if it isn't open."""
        import websocket  # of websocket-client: only the tests with a running host need it

        if self._socket is None:
            address = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
            self._socket = websocket.create_connection(address, timeout=self.timeout)

    def close(self) -> None:
        """Close the websocket; the next `queue` opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def get(self, path: str) -> Json:
        """GET, decoded."""
        return json.loads(self.read(path))

    def post(self, path: str, body: Mapping[str, Any]) -> Json:
        """POST JSON, decoded; an empty answer is an empty dict."""
        answer = self.read(path, json.dumps(body).encode())
        return json.loads(answer) if answer else {}

    def read(self, path: str, body: bytes | None = None) -> bytes:
        """The bytes at a path of the host."""
        request = urllib.request.Request(
            self.url + path, body, {"Content-Type": "application/json"} if body else {}
        )
        with urllib.request.urlopen(request, timeout=self.timeout) as answer:
            return answer.read()

    def _follow(self, result: Result, on_progress: Progress | None) -> None:
        """Read the websocket until the prompt has ended."""
        assert self._socket is not None
        deadline = time.monotonic() + self.timeout
        while result.status == "running":
            if time.monotonic() > deadline:
                raise TimeoutError(f"the prompt did not end in {self.timeout} s")
            message = self._socket.recv()
            if isinstance(message, bytes):
                result.previews += 1
                continue
            event = json.loads(message)
            data = event.get("data", {})
            if event["type"] == "cldm_applied":  # of this prompt: one runs at a time
                result.applied.setdefault(data["node"], []).append(data["text"])
            if data.get("prompt_id") == result.prompt_id:
                record_event(result, event["type"], data)
                if event["type"] == "progress" and on_progress is not None:
                    on_progress(*result.progress[-1])


def record_event(result: Result, kind: str, data: Json) -> None:
    """Write one message of the websocket into the result."""
    if kind == "execution_cached":
        result.cached += data["nodes"]
    elif kind == "executing" and data["node"] is not None:
        result.executed.append(data["node"])
    elif kind == "progress":
        result.progress.append((data["node"], data["value"], data["max"]))
    elif kind == "executed":
        result.outputs[data["node"]] = data["output"] or {}
    elif kind in {"execution_error", "execution_interrupted"}:
        result.error = data
        result.status = kind.removeprefix("execution_")
    elif kind == "execution_success":
        result.status = "success"
