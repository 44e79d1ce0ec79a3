"""What applied control leaves behind and tells, in the real hosts; see test_apply for how."""

import json
from pathlib import Path

import pytest

from .client import HostClient

ROUNDING = 1e-3
FIRST = Path(__file__).resolve().parents[2] / "workflows" / "api" / "first_picture.json"
NOTHING = {"encoded": 0, "reuse": 0, "clock": False, "sampling": False, "callbacks": 0}


# --- what is left behind ---


def test_nothing_that_was_given_is_changed(applied) -> None:
    answer = dict(applied("ends", "inputs"))
    assert answer.pop("apart") == [0, 0, 0], "each door, twice"
    assert len(answer) == 10
    assert [name for name, same in answer.items() if not same] == []


def test_a_hint_that_was_written_into_is_read_anew(applied) -> None:
    answer = applied("ends", "written")
    assert answer["between"] == 0
    assert answer["effect"] > 0.01
    assert answer["encoded"] == 2, "in the middle of a sampling too"


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("interrupt", "InterruptProcessingException"),
        ("memory", "OutOfMemoryError"),
        ("error", "RuntimeError"),
    ],
)
def test_a_sampling_that_is_stopped_leaves_nothing(applied, kind: str, error: str) -> None:
    answer = applied("ends", f"stopped {kind}")
    assert answer["ended"] == [error, error]
    assert answer["held"], "before it was stopped"
    assert answer["left"] == NOTHING
    assert answer["model"] == 0
    assert answer["again"] == answer["door"] == 0


def test_a_model_of_another_family_is_refused_and_nothing_stays(applied) -> None:
    answer = applied("ends", "refused")
    assert answer["message"].startswith("FamilyMismatch: This ControlNet was made for")
    assert answer["left"] == NOTHING


def test_36_samplings_on_models_in_turn_hold_no_memory(applied) -> None:
    answer = applied("ends", "memory")
    assert max(answer["grown"]) <= 0
    assert answer["result"] <= 0


# --- what is told ---


def test_the_report_says_what_was_applied(applied) -> None:
    title, steps, weights, rows, reuse, time = applied("shown", "report")["full"]
    assert title == "apply demo.safetensors: ControlNet for embedded model"
    assert steps == "steps: on at 5 of 6 (1-5)"
    assert weights.startswith("weights of 7 blocks: 0.315, ")
    assert rows == "rows: 5 with control, 5 left out and not computed"
    assert reuse.startswith("computed 3 times, used again 2, drift ")
    assert time.startswith("time in the net: 0.")
    assert len(applied("shown", "report")["plain"]) == 3


def test_the_report_is_sent_once_for_each_sampling(applied) -> None:
    answer = applied("shown", "sent")
    assert answer["copies"]
    assert answer["counts"] == [1, 3], "also for one that fails"
    assert answer["event"] == "cldm_applied"
    assert (answer["node"], answer["client"]) == ("7", "me")
    assert answer["text"] == "steps: on at 3 of 3 (1-3)"
    assert answer["without a server"] == ""


def test_the_report_reaches_the_editor(client: HostClient) -> None:
    prompt = json.loads(FIRST.read_text(encoding="utf-8"))
    (apply,) = (k for k, v in prompt.items() if v["class_type"] == "CLDM_ApplyControlNet")
    (sampler,) = (v for v in prompt.values() if v["class_type"] == "KSampler")
    sampler["inputs"] |= {"steps": 2, "seed": 4711}
    client.connect()
    assert client.submit(prompt).status == "running"
    texts, ended = [], False
    while not ended:
        message = client._socket.recv()
        event = {} if isinstance(message, bytes) else json.loads(message)
        kind = event.get("type", "")
        ended = kind in {"execution_success", "execution_error"}
        if kind == "cldm_applied":
            assert event["data"]["node"] == apply
            texts.append(event["data"]["text"])
    (text,) = texts
    assert "\nsteps: on at 2 of 2 (1-2)\n" in text


def test_a_record_gets_what_was_added(applied) -> None:
    answer = applied("shown", "record")
    assert answer["nets"] == [2, 4], "steps on of both nets"
    assert answer["name"] == "apply demo.safetensors"
    assert answer["strengths"] == [0.0, 0.0, 0.5, 0.25]
    assert answer["off"] == ["outside of the window"] * 2 + [None] * 2
    assert answer["labels"] == 7
    assert answer["rms"] <= 1e-5


# --- bf16 ---


@pytest.mark.parametrize("kind", ["controlnet", "t2i", "t2i xl"])
def test_nets_are_computed_in_bf16_where_that_is_chosen(applied, kind: str) -> None:
    answer = applied("shown", "bf16")[kind]
    assert answer["types"] == ["torch.bfloat16"]
    assert answer["weights"] == "torch.bfloat16"
    assert 0 < answer["error"] < 0.03
    assert answer["door"] == answer["again"] == 0
    assert answer["finite"]


@pytest.mark.parametrize("kind", ["lora", "difference"])
def test_nets_upon_a_base_take_no_precision(applied, kind: str) -> None:
    refused = applied("shown", "bf16 refused")[kind]
    assert refused.startswith("CldmError: ")
    assert refused.endswith("computes in their type: set precision to auto.")
