"""Rehearsals of a training, as a user would start them: is the sudden convergence there, and seen?

The embedded model learns Canny edges of its own pictures, or the discs of the circle data set,
through `python -m cldm_core train`, in at most half an hour. See README.md.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results"
PICTURES, CIRCLES = "pictures", "circles"
MINUTES = 30.0

LEARNING = {
    "held_out": 32,
    "batch_size": 32,
    "precision": "bf16",
    "lr": 6e-4,
    "warmup": 100,
    "ema": 0.99,
    "steps": 700,
    "sample_steps": 15,
    "save_every": 100,
}
"""As the embedded ControlNets were trained."""
SETTINGS: dict[str, dict[str, Any]] = {
    PICTURES: {
        **LEARNING,
        "annotator": "annotators:canny",
        "flip": True,
        "drop_prompt": 0.3,
        "evaluate_every": 50,
    },
    # Without an average of weights, which makes jumps wider.
    CIRCLES: {**LEARNING, "ema": 0.0, "data": CIRCLES, "evaluate_every": 100},
}


def write_pictures(folder: Path, pictures: Path, keywords: Path) -> int:
    """The embedded model's pictures with their names as captions, a folder data set; how many."""
    sys.path.insert(0, str(ROOT))
    import cv2

    from cldm_core.tiny.build import eight_bit
    from cldm_core.tiny.data import load_emoji, render

    folder.mkdir(parents=True)
    found = load_emoji(pictures, keywords)
    for emoji in found:
        picture, _ = render(emoji)
        cv2.imwrite(str(folder / f"{emoji.stem}.png"), eight_bit(picture)[..., ::-1])
        (folder / f"{emoji.stem}.txt").write_text(emoji.caption, encoding="utf-8")
    return len(found)


def flags(settings: dict[str, Any]) -> list[str]:
    """The settings as the command line has them."""
    found = []
    for name, value in settings.items():
        flag = f"--{name.replace('_', '-')}"
        found += [flag] if value is True else [flag, str(value)]
    return found


def trained(settings: dict[str, Any], minutes: float) -> tuple[float, str]:
    """Runs the training; it is asked to stop when time is up. Minutes that it took, its words."""
    command = [sys.executable, "-m", "cldm_core", "train", *flags(settings)]
    started = time.monotonic()
    with tempfile.TemporaryFile("w+", encoding="utf-8") as said:
        with subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT) as run:
            try:
                run.wait(timeout=60 * minutes)
            except subprocess.TimeoutExpired:
                run.send_signal(signal.SIGTERM)
        took = (time.monotonic() - started) / 60
        said.seek(0)
        words = said.read()
    if run.returncode:
        raise SystemExit(f"The training ended with {run.returncode}:\n{words[-2000:]}")
    return took, words


def record_of(out: Path, took: float) -> dict[str, Any]:
    """What came of a run, from its history."""
    sys.path.insert(0, str(ROOT))
    from cldm_core.training.convergence import find
    from cldm_core.training.history import History

    history = History(out)
    curve = [(step, round(value, 4)) for step, value in history.series("adherence")]
    seconds = [value for _, value in history.series("seconds_per_step")]
    found = find(history)
    return {
        "minutes": round(took, 1),
        "seconds_per_step": round(sorted(seconds)[len(seconds) // 2], 3),
        "scores": curve,
        "rise": round(max(value for _, value in curve) - curve[0][1], 4),
        "convergence": None if found is None else str(found),
        "certain": None if found is None else found.certain,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", choices=tuple(SETTINGS))
    parser.add_argument("--pictures", type=Path, help="npm's @lobehub/fluent-emoji-3d 1.1.0, .tgz")
    parser.add_argument("--keywords", type=Path, help="npm's emojilib 4.0.3, .tgz")
    parser.add_argument("--out", type=Path, default=ROOT / "output" / "rehearsal")
    parser.add_argument("--minutes", type=float, default=MINUTES)
    args = parser.parse_args()
    out = args.out / args.data
    shutil.rmtree(out, ignore_errors=True)
    settings = {**SETTINGS[args.data], "out": out / "run"}
    if args.data == PICTURES:
        if args.pictures is None or args.keywords is None:
            parser.error("the pictures are in two packages of npm: --pictures and --keywords")
        settings["data"] = out / "pictures"
        print(f"{write_pictures(settings['data'], args.pictures, args.keywords)} pictures")
    took, words = trained(settings, args.minutes)
    print(words)
    record = record_of(out / "run", took)
    known = {name: value for name, value in settings.items() if not isinstance(value, Path)}
    record = {"cores": os.cpu_count(), "settings": known, **record}
    RESULTS.mkdir(exist_ok=True)
    place = RESULTS / f"rehearsal-{args.data}.json"
    place.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in record.items() if k != "settings"}, indent=1))


if __name__ == "__main__":
    main()
