"""`python -m cldm_core train`: settings, what it says beforehand, and a training end to end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml

from controlnet_pack.cldm_core import CldmError, load_control
from controlnet_pack.cldm_core.__main__ import main, make_parser
from controlnet_pack.cldm_core.commands import progress_bar
from controlnet_pack.cldm_core.training import plan
from controlnet_pack.cldm_core.training.command import _say, config_of
from controlnet_pack.cldm_core.training.config import TrainConfig
from controlnet_pack.cldm_core.training.doctor import Report
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.options import options_of, write_yaml
from controlnet_pack.cldm_core.training.sources import ListedPairs, open_source

from .training_pairs import line_hint, picture, write_prompt_json

ROOT = Path(__file__).resolve().parents[2]
OTHER: dict[str, Any] = {
    "prediction": "v",
    "kind": "control_lora",
    "lr_schedule": "cosine",
    "optimizer": "adamw8bit",
    "device": "cpu",
    "precision": "bf16",
    "save_dtype": "bf16",
    "crop": "random",
    "annotator": "annotators:canny",
    "columns": "hint=edges,prompt=caption",
    "rank": 7,
    "drop_prompt": 0.25,
    "ema": 0.9,
    "resolution": 128,
    "guidance": 2.5,
    "layers": "lean",
}
"""Values that aren't the usual ones."""


def another(name: str, default: Any) -> Any:
    if name in OTHER:
        return OTHER[name]
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1
    return f"some {name}"


EVERYTHING = {one.name: another(one.name, one.default) for one in options_of(TrainConfig)}


def table() -> str:
    """All options as docs/training.md has them."""
    lines: list[str] = []
    group = ""
    for one in options_of(TrainConfig):
        if one.group != group:
            group = one.group
            lines += ["", f"### {group.capitalize()}", ""]
            lines += ["| option | default | values | what it is |", "|---|---|---|---|"]
        default = "" if one.default is None else yaml.safe_dump(one.default).split("\n")[0]
        lines.append(f"| `{one.name}` | {default} | {one.expected} | {one.help} |")
    return "\n".join(lines).strip()


def test_the_page_has_all_options() -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert table() in page


def parsed(*arguments: str | Path) -> TrainConfig:
    return config_of(make_parser().parse_args(["train", *map(str, arguments)]))


def as_flags(values: dict[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            flags.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            flags += [f"--{flag}", str(value)]
    return flags


def test_every_option_is_a_flag_and_a_line_of_yaml(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(EVERYTHING))
    from_yaml, from_flags = parsed(path), parsed(*as_flags(EVERYTHING))
    assert from_yaml == from_flags == TrainConfig(**EVERYTHING)
    usual = TrainConfig()
    same = [one.name for one in fields(usual) if getattr(usual, one.name) == EVERYTHING[one.name]]
    assert same == []


def test_flags_count_more_than_the_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("lr: 1e-4\nsteps: 7\nflip: true\n")
    config = parsed(path, "--steps", "8", "--no-flip")
    assert (config.lr, config.steps, config.flip) == (1e-4, 8, False)


@pytest.mark.parametrize("text", ["1e-5", "0.00001", "1.0e-05", "'1e-5'"])
def test_numbers_are_read_however_they_are_written(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(f"lr: {text}\n")
    assert TrainConfig.from_yaml(path).lr == 1e-5


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    for config in (TrainConfig(), TrainConfig(**EVERYTHING)):
        path = tmp_path / "config.yaml"
        path.write_text(write_yaml(config))
        assert TrainConfig.from_yaml(path) == config


def test_an_empty_flag_takes_an_option_back(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("annotator: annotators:canny\n")
    assert parsed(path, "--annotator", "").annotator is None


WRONG = [
    ("lr: 0", "lr is 0.0, expected a number above 0."),
    ("lr: fast", "lr is 'fast', expected a number above 0."),
    ("lr: .nan", "lr is nan, expected a number above 0."),
    ("steps: 0", "steps is 0, expected a whole number from 1."),
    ("steps: 1.5", "steps is 1.5, expected a whole number from 1."),
    ("steps: true", "steps is True, expected a whole number from 1."),
    ("steps:", "steps is None, expected a whole number from 1."),
    ("flip: 1", "flip is 1, expected true or false."),
    ("out: 5", "out is 5, expected a text."),
    ("drop_prompt: 50", "drop_prompt is 50.0, expected a number from 0 up to 1."),
    ("precision: fp8", "precision is 'fp8', expected one of fp32, bf16, fp16."),
    ("resolution: 8", "resolution is 8, expected a whole number from 64 (or nothing)."),
    ("warmup: 5000", "warmup is 5000, expected at most the number of steps, 4000."),
    ("rank: 4", "rank is 4 and kind is controlnet, which has none: leave it out."),
    ("annotator: canny", "annotator is 'canny', expected MODULE:FUNCTION"),
    ("columns: edges", "columns is 'edges', expected ROLE=NAME with a role of target, hint"),
    ("kind: lllite\nonly_mid_control: true", "a ControlNet-LLLite steers nothing in the middle"),
    ("checkpointing: true\nlayers: plain", "checkpointing is true and layers is plain, but"),
    ("learning_rate: 1", "There is no option 'learning_rate': docs/training.md has all of them."),
    ("batchsize: 1", "There is no option 'batchsize': did you mean batch_size?"),
    ("- lr", "holds list, expected lines such as ema: 0.9999."),
    ("lr: [", "is no YAML that can be read: "),
]


@pytest.mark.parametrize(("text", "sentence"), WRONG)
def test_mistakes_in_the_file_are_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, sentence: str
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert main(["train", str(path)]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert "config.yaml" in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("", "Nothing says what to train: give a CONFIG.yaml, or options"),
        ("nowhere.yaml", "There is no file nowhere.yaml"),
        ("--steps many", "steps is 'many', expected a whole number from 1."),
        ("--lr -1", "lr is -1.0, expected a number above 0."),
        ("--data nowhere", "There is no data set nowhere"),
        ("--base nowhere.ckpt", "There is no file nowhere.ckpt"),
        ("--annotator no:such", "'no:such' can't be used"),
        ("--annotator os:getcwd", "No score is known for hints of 'os:getcwd'"),
        ("--score beauty", "There is no score 'beauty': choose one of edge_f1"),
        ("--resolution 100", "resolution is 100, expected a multiple of 32"),
        ("--init nowhere.safetensors", "There is no file nowhere.safetensors"),
        ("--circles 8", "16 of 8 pairs were to be held out (held_out), which leaves none"),
        ("--columns hint=edges", "columns is given, but circles are drawn: leave it out."),
        ("--conditioning edges", "conditioning is given, but circles are drawn: leave it out."),
    ],
)
def test_mistakes_are_told_before_a_step(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *arguments.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.safetensors"))
    assert main(["train", *arguments.split(), "--dry-run"]) == 2


def test_a_folder_that_cannot_be_written_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert main(["train", "--data", "circles", "--out", str(tmp_path / "file" / "out")]) == 2
    assert "Nothing can be written into the folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "sentences"),
    [
        (
            "--data circles --batch-size 3 --accumulation 2 --steps 831 --ema 0.9",
            (
                "4984 pairs to train on and 16 held out, at 128x128 pixels; hints are stored",
                "a ControlNet on tiny, from the base's encoder, with 3,009,488 trained weights",
                "831 of 6 pairs (3 at once x 2 batches x 1 processes), 1.0 times through the data",
                "2 checkpoints of about",
                "and one for each better score, at most 4 at a time",
                "3 times 16 samples of 20 steps, scored by mask IoU",
                "holds no run yet",
            ),
        ),
        ("--kind control_lora --rank 4", ("a Control-LoRA on tiny",)),
        ("--kind lllite --evaluate-every 0", ("a ControlNet-LLLite", "Evaluation: none.")),
        ("--no-sd-locked", ("trained weights",)),
        ("--cache none", ("Cache: none; pictures and prompts are encoded each time.",)),
    ],
)
def test_a_dry_run_says_what_would_happen_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, sentences: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    assert main(["train", "--dry-run", "--out", str(out), *options.split()]) == 0
    said = capsys.readouterr().out
    for sentence in sentences:
        assert sentence in said
    assert not out.exists()


def test_a_dry_run_reckons_the_memory_that_training_takes() -> None:
    from controlnet_pack.cldm_core.training.dry_run import dry_run

    config = TrainConfig(ema=0.9)
    net = plan.make_net(config, plan.load_base(config, plan.device_of(config)).pipeline.unet)
    count = sum(weight.numel() for weight in net.parameters())
    frozen = sum(weight.numel() for weight in net.unet.parameters())
    found = next(line for line in dry_run(config) if line.startswith("Memory"))
    expected = (count * (4 + 4 + 8 + 4) + frozen * 4) / 1e9
    assert f"{expected:.2f} GB" in found


def test_a_dry_run_reckons_the_disk_that_checkpoints_take(tmp_path: Path) -> None:
    from controlnet_pack.cldm_core.training.dry_run import dry_run

    config = TrainConfig(sd_locked=False, out=str(tmp_path), steps=1000, evaluate_every=100)
    net = plan.make_net(config, plan.load_base(config, plan.device_of(config)).pipeline.unet)
    count = sum(weight.numel() for weight in net.parameters())
    files = (net.net.state_dict(), net.unet.state_dict())
    nets = 2 * sum(value.numel() for tensors in files for value in tensors.values())
    one = count * (4 + 8) + nets
    found = next(line for line in dry_run(config) if line.startswith("Disk"))
    assert f"2 checkpoints of about {one / 1e9:.2f} GB each" in found
    # Two and the best are kept while another one is written; so are the best net and the last.
    assert (
        f"at most 4 at a time; with the nets themselves {(4 * one + 3 * nets) / 1e9:.2f}" in found
    )


@pytest.mark.parametrize(
    ("options", "latents", "texts"),
    [
        ({}, 1, 1),
        ({"flip": True, "crop": "random"}, 8, 1),
        ({"drop_prompt": 1.0}, 1, 0),
        ({"steps": 10**4}, 40000 / 49984, 40000 / 49984),
    ],
)
def test_a_dry_run_reckons_the_disk_that_the_cache_takes(
    tmp_path: Path, options: dict[str, Any], latents: float, texts: float
) -> None:
    from controlnet_pack.cldm_core.training.dry_run import dry_run

    usual = {"circles": 50000, "steps": 10**6, "out": str(tmp_path)}
    found = next(line for line in dry_run(TrainConfig(**{**usual, **options})) if "Cache" in line)
    width = plan.load_base(TrainConfig(), torch.device("cpu")).pipeline.unet.config.context_dim
    expected = 49984 * (latents * 4 * 16 * 16 + texts * 77 * width) * 4
    assert f"up to {expected / 1e9:.2f} GB in {tmp_path / 'cache'}, and hints" in found


def draw_discs(folder: Path, count: int = 64) -> None:
    """Discs of one colour on white, with captions."""
    folder.mkdir()
    colours = {"red": (68, 46, 221), "blue": (245, 136, 59), "green": (80, 180, 80)}
    rng = np.random.default_rng(0)
    for number in range(count):
        name = list(colours)[number % len(colours)]
        picture = np.full((128, 128, 3), 255, np.uint8)
        radius = rng.uniform(14, 40)
        middle = tuple(round(16 * place) for place in rng.uniform(radius + 2, 126 - radius, 2))
        cv2.circle(picture, middle, round(16 * radius), colours[name], -1, cv2.LINE_AA, 4)
        cv2.imwrite(str(folder / f"{number:03d}.png"), picture)
        (folder / f"{number:03d}.txt").write_text(f"{name} circle")


def test_a_training_end_to_end_follows_its_hints(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    draw_discs(tmp_path / "discs")
    config = {
        "data": str(tmp_path / "discs"),
        "annotator": "annotators:mask",
        "steps": 48,
        "batch_size": 8,
        "lr": 2e-3,
        "warmup": 5,
        "min_snr": 5,
        "held_out": 12,
        "sample_steps": 8,
        "guidance": 1,
        "evaluate_every": 48,
        "save_every": 48,
        "device": "cpu",
        "out": str(tmp_path / "out"),
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["train", str(path), "--check"]) == 0
    assert main(["train", str(path)]) == 0
    said = capsys.readouterr().out
    assert "64 pairs" in said
    assert "The net that scored best" in said
    untrained, trained = (score for _, score in History(tmp_path / "out").series("adherence"))
    assert trained >= untrained + 0.15
    names = {found.name for found in (tmp_path / "out").iterdir()}
    assert names >= {
        *("best.safetensors", "last.safetensors", "config.yaml", "history.jsonl"),
        *("plot.png", "samples.png"),
    }
    net = load_control(tmp_path / "out" / "best.safetensors")
    assert net.zero_convs[0][0].weight.any()
    assert TrainConfig.from_yaml(tmp_path / "out" / "config.yaml") == TrainConfig(
        **{**config, "guidance": 1.0, "min_snr": 5.0}
    )


QUICK = (
    *("--data", "circles", "--circles", "4", "--resolution", "64", "--batch-size", "1"),
    *("--held-out", "0", "--save-every", "1", "--log-every", "1", "--device", "cpu"),
)


def test_the_command_stops_on_a_signal_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "cldm_core", "train", *QUICK, "--out", str(out)]
    process = subprocess.Popen(
        [*command, "--steps", "1000"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    while not list(out.glob("checkpoints/step-*")) and process.poll() is None:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGTERM)
    said, wrong = process.communicate()
    assert process.returncode == 0, wrong
    (step,) = map(int, re.findall(rb"Stopped after step (\d+) of 1000", said))
    options = [*QUICK, "--out", str(out), "--steps", str(step + 1)]
    assert main(["train", *options]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main(["train", *options, "--resume"]) == 0
    assert f"Going on from step {step}" in capsys.readouterr().out
    assert History(out).series("loss")[-1][0] == step + 1


def test_sentences_have_lines_of_their_own_above_the_bar(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with progress_bar("training") as bar:
        bar(1, 4)
        _say("Step 1: mask IoU 0.31.")
    said, shown = capsys.readouterr()
    assert said == "Step 1: mask IoU 0.31.\n"
    # What stands on the line is wiped off, and the bar drawn anew.
    assert re.search(r"\r +\r\rtraining: ", shown)


def test_a_refused_resume_leaves_the_settings_of_the_run_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    options = [*QUICK, "--out", str(out)]
    assert main(["train", *options, "--steps", "1"]) == 0
    before = (out / "config.yaml").read_text()
    assert main(["train", *options, "--kind", "lllite", "--resume"]) == 2
    assert "started with kind controlnet (now lllite): set it as it was" in capsys.readouterr().err
    assert (out / "config.yaml").read_text() == before


def test_a_run_goes_on_with_its_own_settings_where_no_file_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["train", *QUICK, "--steps", "1", "--lr", "3e-4", "--out", str(out)]) == 0
    assert main(["train", "--resume", "--out", str(out), "--steps", "2"]) == 0
    assert "Going on from step 1" in capsys.readouterr().out
    config = TrainConfig.from_yaml(out / "config.yaml")
    assert (config.circles, config.steps, config.lr) == (4, 2, 3e-4)


def test_a_file_of_settings_in_the_run_s_folder_keeps_its_comments(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    settings = parsed(*QUICK, "--steps", "1", "--out", tmp_path).to_dict()
    text = f"# mine\n{yaml.safe_dump(settings)}"
    path.write_text(text)
    assert main(["train", str(path)]) == 0
    assert path.read_text() == text
    assert main(["train", str(path), "--resume", "--steps", "2"]) == 0
    assert TrainConfig.from_yaml(path).steps == 2


def test_without_a_cache_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", *QUICK, "--steps", "1", "--cache", "none", "--out", "out"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "cache").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--check-pairs", "3"], "9 pairs, 3 of them looked at"),
        (["--check-pairs", "0"], "9 pairs, all of them looked at"),
        ([], "9 pairs, all of them looked at"),
    ],
)
def test_how_many_pairs_are_looked_at_can_be_said(
    capsys: pytest.CaptureFixture[str], options: list[str], said: str
) -> None:
    data = ["--data", "circles", "--circles", "9", "--resolution", "64"]
    assert main(["train", *data, "--check", *options]) == 0
    found = capsys.readouterr().out
    assert said in found
    assert ("--check-pairs 0 looks at all of them." in found) == ("3 of them" in said)


def test_of_many_pairs_some_thousands_are_looked_at(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int | None] = []

    def look(_: Any, __: Any, *, limit: int | None) -> Report:
        asked.append(limit)
        return Report(10**6, 5000, ())

    monkeypatch.setattr("controlnet_pack.cldm_core.training.checking.check_data", look)
    assert main(["train", "--data", "circles", "--check"]) == 0
    assert asked == [5000]
    assert main(["train", "--data", "circles", "--check", "--check-pairs", "-1"]) == 2
    assert "--check-pairs is -1, expected a whole number from 0." in capsys.readouterr().err


def test_the_score_follows_from_the_annotator(tmp_path: Path) -> None:
    config = TrainConfig(annotator="annotators:canny", out=str(tmp_path), circles=4, held_out=2)
    made = plan.make_plan(config)
    assert made.evaluator is not None
    assert made.evaluator.score.name == "edge_f1"


def test_workers_is_how_many_threads_make_batches(tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path), circles=4, held_out=0, resolution=64, workers=3)
    assert plan.make_plan(config).batches.workers == 3


def test_hints_are_made_where_pairs_have_none_and_nowhere_else(tmp_path: Path) -> None:
    source = open_source(write_prompt_json(tmp_path / "data", 8))
    halves = [replace(source[n], hint=source[n].hint if n % 2 else None) for n in range(8)]
    config = TrainConfig(
        data="data", out=str(tmp_path), held_out=4, resolution=64, drop_prompt=1, score="mask_iou"
    )
    base = plan.load_base(config, plan.device_of(config))
    made = plan.plan_of(config, base, ListedPairs(halves), lambda target: 255 - target)
    assert made.evaluator is not None
    batch = made.batches[0]
    trained = (255 * batch.hint).round().byte().permute(0, 2, 3, 1).numpy()
    held_out = {one.name: one.hint for one in made.evaluator.held_out}
    hints = {**held_out, **dict(zip(batch.names, trained, strict=True))}
    for number in range(8):
        expected = line_hint(number) if number % 2 else 255 - picture(number)
        assert np.array_equal(hints[f"target/{number}.png"], expected)


def test_circles_are_scored_by_what_is_handed_in(tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path), circles=4, held_out=2, resolution=64)
    base = plan.load_base(config, plan.device_of(config))
    source = plan.open_data(config, 64)
    by_discs = plan.plan_of(config, base, source).evaluator
    assert by_discs is not None
    assert by_discs.adherence is plan.disc_of
    assert all(one.wanted is not None for one in by_discs.held_out)

    def inverted(picture: np.ndarray) -> np.ndarray:
        return 255 - picture

    handed_in = plan.plan_of(config, base, source, inverted).evaluator
    assert handed_in is not None
    assert handed_in.adherence is inverted
    assert all(one.wanted is None for one in handed_in.held_out)


def test_the_net_begins_with_the_same_numbers_for_a_seed(tmp_path: Path) -> None:
    config = TrainConfig(out=str(tmp_path), evaluate_every=0)
    base = plan.load_base(config, plan.device_of(config))
    one, two = (plan.make_net(config, base.pipeline.unet).net.state_dict() for _ in range(2))
    assert all(one[key].equal(two[key]) for key in one)


def test_errors_of_settings_are_errors_of_the_core() -> None:
    with pytest.raises(CldmError, match="expected a number above 0"):
        TrainConfig(lr=0)
