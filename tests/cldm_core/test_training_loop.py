"""The loop against the same steps written out, and what stops it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from controlnet_pack.cldm_core import CldmError, NoiseSchedule, load_control, load_unet, training
from controlnet_pack.cldm_core.checkpoint.read import read
from controlnet_pack.cldm_core.training import min_snr, training_loss
from controlnet_pack.cldm_core.training.batches import Batch
from controlnet_pack.cldm_core.training.config import TrainConfig
from controlnet_pack.cldm_core.training.ema import Ema
from controlnet_pack.cldm_core.training.evaluate import Evaluation, HeldOut
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.loop import SKIPPED_AT_MOST, Fitted, fit
from controlnet_pack.cldm_core.training.noise import draw
from controlnet_pack.cldm_core.training.optimizers import learning_rate, make_optimizer
from controlnet_pack.cldm_core.training.saving import TRAINING_KEY
from controlnet_pack.cldm_core.training.scores import SCORES
from controlnet_pack.cldm_core.training.session import opened

from .states import same
from .training_runs import SMALL, SmallBatches, small_config, small_trainable, state_of

GIVEN = ("evaluator", "stop", "shown", "resume", "begun")


def run(out: Path, *, batches: SmallBatches | None = None, **options: Any) -> Fitted:
    kinds = ("sd_locked", "only_mid_control")
    settings = {name: options[name] for name in kinds if name in options}
    given = {name: options.pop(name) for name in GIVEN if name in options}
    trainable = small_trainable(options.get("kind", "controlnet"), **settings)
    config = small_config(out, **options)
    return fit(trainable, batches or SmallBatches(), config, out=out, history=History(out), **given)


def by_hand(steps: int, accumulation: int, clip: float, gamma: float) -> dict[str, Tensor]:
    """The trained weights after steps of plain PyTorch."""
    trainable, schedule, batches = small_trainable(), NoiseSchedule(), SmallBatches()
    optimizer = torch.optim.AdamW(trainable.parameters(), weight_decay=0.01, fused=True)
    for step in range(steps):
        optimizer.zero_grad()
        for part in range(accumulation):
            batch = batches[step * accumulation + part]
            noise, timesteps = draw(batch.latents, 1000, (0, step, part))
            loss = training_loss(
                trainable.unet, trainable.net, batch.latents, noise, timesteps, batch.context,
                batch.hint, schedule=schedule, weights=min_snr(schedule, timesteps, gamma),
            )  # fmt: skip
            (loss / accumulation).backward()
        torch.nn.utils.clip_grad_norm_(trainable.parameters(), clip)
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, (step + 1) / 2)
        optimizer.step()
    return {f"net.{name}": value for name, value in trainable.net.named_parameters()}


def test_the_loop_takes_the_steps_that_are_written_out_here(tmp_path: Path) -> None:
    options = {"steps": 3, "accumulation": 2, "clip": 0.05, "min_snr": 5.0}
    run(tmp_path, ema=0.0, lr_schedule="constant", **options)
    expected = by_hand(3, 2, 0.05, 5.0)
    found = read(tmp_path / "checkpoints" / "step-00000003" / "trained.safetensors").tensors
    assert same(dict(found), {key: value.detach() for key, value in expected.items()})


def test_averages_are_those_of_the_weights_after_each_step(tmp_path: Path) -> None:
    run(tmp_path, save_every=1, ema=0.9)
    weights = [state_of(tmp_path, step) for step in range(1, 7)]
    name = "middle_block_out.0.weight"
    average = torch.zeros_like(weights[0][f"trained.safetensors/net.{name}"])
    for step, state in enumerate(weights):
        decay = min(0.9, (1 + step) / (10 + step))
        average.lerp_(state[f"trained.safetensors/net.{name}"], 1 - decay)
    torch.testing.assert_close(weights[-1][f"averages.safetensors/net.{name}"], average)
    saved = read(tmp_path / "last.safetensors").tensors[name]
    assert torch.equal(saved, weights[-1][f"averages.safetensors/net.{name}"])


def test_averages_are_swapped_in_without_a_copy() -> None:
    weight = nn.Parameter(torch.ones(2))
    ema = Ema({"w": weight}, 0.5)
    with torch.no_grad():
        weight.add_(8)
    ema.update(0)
    place = weight.data_ptr()
    with ema.swapped_in():
        assert weight.tolist() == pytest.approx([8.2, 8.2])
    assert weight.tolist() == [9, 9]
    assert weight.data_ptr() == place


def test_learning_rates(tmp_path: Path) -> None:
    config = small_config(tmp_path, steps=10, warmup=4, lr=1.0)
    rates = [learning_rate(config, step) for step in range(10)]
    assert rates[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates[7] == pytest.approx(0.5)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[9] > 0
    flat = small_config(tmp_path, steps=10, warmup=0, lr=1.0, lr_schedule="constant")
    assert {learning_rate(flat, step) for step in range(10)} == {1.0}


def test_only_what_is_trained_changes(tmp_path: Path) -> None:
    trainable = small_trainable(sd_locked=False)
    before = {key: value.clone() for key, value in trainable.unet.state_dict().items()}
    config = small_config(tmp_path, sd_locked=False)
    fit(trainable, SmallBatches(), config, out=tmp_path)
    changed = {
        key
        for key, value in trainable.unet.state_dict().items()
        if not torch.equal(value, before[key])
    }
    assert {key.partition(".")[0] for key in changed} == {"output_blocks", "out"}
    whole = load_unet(tmp_path / "last_unet.safetensors")
    assert whole.config == SMALL


def test_only_mid_control_trains_no_zero_convolution_of_a_skip(tmp_path: Path) -> None:
    run(tmp_path, only_mid_control=True)
    state = read(tmp_path / "last.safetensors").tensors
    assert not state["zero_convs.0.0.weight"].any()
    assert state["middle_block_out.0.weight"].any()


@pytest.mark.parametrize("kind", ["controlnet", "control_lora", "lllite"])
def test_the_net_is_saved_as_load_control_reads_it(tmp_path: Path, kind: str) -> None:
    options: dict[str, Any] = {} if kind == "controlnet" else {"rank": 4}
    trainable = small_trainable(kind, **options)
    config = small_config(tmp_path, kind=kind, ema=0.0, annotator="annotators:canny", **options)
    fitted = fit(trainable, SmallBatches(), config, out=tmp_path)
    net = load_control(fitted.net, base=trainable.unet)
    expected = {key: value.detach() for key, value in trainable.net.state_dict().items()}
    assert same(dict(net.state_dict()), expected)
    metadata = read(fitted.net).metadata
    assert metadata["cldm_core.hint"] == "canny"
    facts = json.loads(metadata[TRAINING_KEY])
    assert facts["step"] == 6
    assert facts["config"]["lr"] == 1e-3
    assert str(tmp_path) not in str(metadata)


def test_checkpoints_hold_a_net_to_use(tmp_path: Path) -> None:
    run(tmp_path, save_dtype="fp16")
    net = load_control(tmp_path / "checkpoints" / "step-00000004" / "net.safetensors")
    assert next(net.parameters()).dtype == torch.float16


@dataclass
class Scores:
    """An evaluator whose scores are given, and which notes what it was asked."""

    numbers: Sequence[float | None]
    name: str = "edge_f1"
    held_out: Sequence[HeldOut] = ()
    asked: list[int] = field(default_factory=list)
    sums: list[float] = field(default_factory=list)

    @property
    def score(self) -> Any:
        return SCORES[self.name]

    def __call__(self, net: nn.Module, step: int) -> Evaluation:
        number = self.numbers[len(self.asked)]
        self.asked.append(step)
        self.sums.append(sum(float(weight.detach().double().sum()) for weight in net.parameters()))
        torch.rand(3)  # as a sampler may
        scores = () if number is None else (number,)
        by = None if number is None else self.score
        return Evaluation(step, number, scores, (), {"z0": 1.0}, by)


def test_evaluations_come_before_the_first_step_and_after_the_last(tmp_path: Path) -> None:
    scores = Scores([0.1, 0.2, 0.5, 0.3])
    fitted = run(tmp_path, steps=5, evaluate_every=2, evaluator=scores)
    assert scores.asked == [0, 2, 4, 5]
    assert fitted.score == 0.5
    assert History(tmp_path).series("adherence") == [(0, 0.1), (2, 0.2), (4, 0.5), (5, 0.3)]


def test_the_best_net_is_kept(tmp_path: Path) -> None:
    scores = Scores([0.1, 0.2, 0.5, 0.3, 0.4, 0.1, 0.1])
    fitted = run(tmp_path, save_every=1, keep=1, evaluate_every=1, evaluator=scores)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000002", "step-00000006"]
    assert fitted.best is not None
    best, kept = (
        dict(read(path).tensors)
        for path in (fitted.best, tmp_path / "checkpoints" / names[0] / "net.safetensors")
    )
    assert same(best, kept)
    facts = json.loads(read(fitted.best).metadata[TRAINING_KEY])
    assert (facts["step"], facts["score"]) == (2, 0.5)


def test_the_best_may_be_the_lowest(tmp_path: Path) -> None:
    scores = Scores([9.0, 5.0, 7.0, 6.0], "colour_error")
    fitted = run(tmp_path, keep=1, save_every=2, evaluate_every=2, evaluator=scores)
    assert fitted.score == 5.0
    assert (tmp_path / "checkpoints" / "step-00000002").exists()


def test_no_net_is_the_best_where_none_beats_the_untrained_one(tmp_path: Path) -> None:
    scores = Scores([0.5, 0.2, math.nan, None])
    assert run(tmp_path, evaluate_every=2, evaluator=scores).best is None


def test_a_resumed_run_knows_what_was_best_and_evaluates_nothing_twice(tmp_path: Path) -> None:
    run(tmp_path, steps=4, evaluate_every=2, evaluator=Scores([0.1, 0.9, 0.2]))
    scores = Scores([0.3])
    config = small_config(tmp_path, steps=6, evaluate_every=2)
    fitted = fit(
        small_trainable(), SmallBatches(), config, out=tmp_path, history=History(tmp_path),
        evaluator=scores, resume=True,
    )  # fmt: skip
    assert scores.asked == [6]
    assert fitted.score == 0.9


def test_the_best_net_of_before_is_not_what_a_run_without_evaluations_comes_to(
    tmp_path: Path,
) -> None:
    scored = run(tmp_path, steps=4, evaluate_every=2, evaluator=Scores([0.1, 0.9, 0.2]))
    assert (scored.best, scored.score) == (tmp_path / "best.safetensors", 0.9)
    for options in ({"steps": 4}, {"steps": 5}, {"steps": 6, "evaluator": Scores([])}):
        fitted = run(tmp_path, evaluate_every=0, resume=True, **options)
        assert (fitted.step, fitted.best, fitted.score) == (options["steps"], None, None)
        about = json.loads(read(fitted.net).metadata[TRAINING_KEY])
        assert (about["step"], "score" in about) == (options["steps"], False)
    assert (tmp_path / "best.safetensors").exists()


def test_pairs_that_were_trained_on_are_not_scored_later(tmp_path: Path) -> None:
    hint = np.zeros((64, 64, 3), np.uint8)
    before, now = ([HeldOut(name, "", hint) for name in names] for names in ("ab", "ac"))
    run(tmp_path, steps=2, evaluate_every=2, evaluator=Scores([0.1, 0.2], held_out=before))
    with pytest.raises(CldmError, match="Other pairs are held out than before"):
        run(tmp_path, evaluate_every=2, evaluator=Scores([0.3], held_out=now), resume=True)
    again = Scores([0.3, 0.4], held_out=before)
    assert run(tmp_path, evaluate_every=2, evaluator=again, resume=True).score == 0.4


def test_an_evaluation_that_was_cut_off_is_done_again(tmp_path: Path) -> None:
    options = {"evaluate_every": 2, "save_every": 2, "keep": 1}

    def cut_off(evaluation: Evaluation) -> None:
        if evaluation.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, evaluator=Scores([0.1, 0.3, 0.9]), shown=cut_off, **options)
    resumed = run(tmp_path, evaluator=Scores([0.9, 0.2]), resume=True, **options)
    assert resumed.score == 0.9
    assert resumed.best is not None
    facts = json.loads(read(resumed.best).metadata[TRAINING_KEY])
    assert (facts["step"], facts["score"]) == (4, 0.9)
    assert (tmp_path / "checkpoints" / "step-00000004").exists()


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (OSError("The disk is full."), r"disk is full\."),
        (torch.cuda.OutOfMemoryError("tried to allocate 2 GiB"), "memory is full: "),
    ],
)
def test_an_evaluation_that_fails_costs_no_step(
    tmp_path: Path, error: Exception, told: str
) -> None:
    def full(evaluation: Evaluation) -> None:
        if evaluation.step == 3:
            raise error

    options = {"evaluate_every": 3, "save_every": 2}
    with pytest.raises(CldmError, match=rf"{told}.* resume it, and it goes on from step 3"):
        run(tmp_path, evaluator=Scores([0.3, 0.2]), shown=full, **options)
    run(tmp_path, evaluator=Scores([0.2, 0.1]), resume=True, **options)
    assert [step for step, _ in History(tmp_path).series("adherence")] == [0, 3, 6]


def test_evaluations_see_averages_and_change_nothing(tmp_path: Path) -> None:
    scores = Scores([0.1] * 7)
    run(tmp_path / "one", evaluate_every=1, evaluator=scores)
    run(tmp_path / "two")
    assert same(state_of(tmp_path / "one", 6), state_of(tmp_path / "two", 6))
    saved = read(tmp_path / "one" / "last.safetensors").tensors.values()
    total = sum(float(value.double().sum()) for value in saved)
    assert scores.sums[-1] == pytest.approx(total)


def test_a_run_that_is_asked_to_stop_saves_first(tmp_path: Path) -> None:
    fitted = run(tmp_path, save_every=100, stop=lambda: True)
    assert (fitted.step, fitted.stopped) == (1, True)
    assert (tmp_path / "checkpoints" / "step-00000001").exists()
    assert fitted.net.exists()


@pytest.mark.parametrize("numbers", [(0.1, 0.3), (0.3, 0.1)])
def test_a_wish_to_stop_that_comes_in_an_evaluation_takes_no_step_more(
    tmp_path: Path, numbers: tuple[float, ...]
) -> None:
    options = {"evaluate_every": 2, "save_every": 100}
    scores = Scores(numbers)
    fitted = run(tmp_path, evaluator=scores, stop=lambda: len(scores.asked) == 2, **options)
    assert (fitted.step, fitted.stopped) == (2, True)
    again = Scores([0.2, 0.2])
    resumed = run(tmp_path, evaluator=again, resume=True, **options)
    assert again.asked == [4, 6]
    assert resumed.score == 0.3


def test_a_wish_to_stop_that_comes_in_the_first_evaluation_has_a_step_to_save(
    tmp_path: Path,
) -> None:
    scores = Scores([0.1])
    assert run(tmp_path, evaluate_every=2, evaluator=scores, stop=lambda: True).step == 1
    assert (scores.asked, state_of(tmp_path, 1) != {}) == ([0], True)


def spoiled(part: str, at: int) -> SmallBatches:
    """Batches whose number `at` has a NaN."""

    def spoil(index: int, batch: Batch) -> Batch:
        if index == at:
            getattr(batch, part).view(-1)[0] = torch.nan
        return batch

    return SmallBatches(spoil=spoil)


@pytest.mark.parametrize("part", ["latents", "context"])
def test_no_number_stops_the_run_with_its_batch_named(tmp_path: Path, part: str) -> None:
    sentence = "loss of step 4 is no finite number, with the pairs pair 12, pair 13. .* from step 3"
    with pytest.raises(CldmError, match=sentence):
        run(tmp_path, accumulation=2, batches=spoiled(part, 6))
    run(tmp_path / "whole", steps=3, accumulation=2, lr_schedule="constant")
    weights = state_of(tmp_path, 3)
    assert all(value.isfinite().all() for value in weights.values())
    config = small_config(tmp_path, accumulation=2)
    fitted = fit(small_trainable(), SmallBatches(), config, out=tmp_path, resume=True)
    assert fitted.step == 6


def test_a_hint_out_of_range_is_refused_with_its_batch_named(tmp_path: Path) -> None:
    with pytest.raises(CldmError, match=r"the pairs pair 6, pair 7\. The run stops at step 3; "):
        run(tmp_path, batches=spoiled("hint", 3))
    assert (tmp_path / "checkpoints" / "step-00000003").exists()


def test_a_best_net_of_an_earlier_run_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    (tmp_path / "best.safetensors").touch()
    assert run(tmp_path).best is None


def test_weights_that_are_no_numbers_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(CldmError, match="weights of the net are infinite or no numbers"):
        run(tmp_path, lr=1e38, clip=0.0, warmup=0, ema=0.0, save_every=1, steps=2)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


@pytest.mark.parametrize("error", [CldmError("There is no file a.png."), OSError("disk is gone")])
def test_a_vanished_file_is_a_sentence_and_the_state_is_saved(
    tmp_path: Path, error: Exception
) -> None:
    def spoil(index: int, batch: Batch) -> Batch:
        if index == 3:
            raise error
        return batch

    with pytest.raises(CldmError, match=f"{error} The run stops at step 3; resume it"):
        run(tmp_path, batches=SmallBatches(spoil=spoil))
    run(tmp_path / "whole")
    fit(small_trainable(), SmallBatches(), small_config(tmp_path), out=tmp_path, resume=True)
    assert same(state_of(tmp_path, 6), state_of(tmp_path / "whole", 6))


def test_sentences_that_a_node_shows_too_name_no_flag() -> None:
    room = Path(training.__file__).parent
    for path in sorted(room.glob("*.py")):
        if path.stem not in ("command", "dry_run"):  # which the command line alone runs
            flags = re.findall(r"(?<![-\w])--[a-z][\w-]*", path.read_text(encoding="utf-8"))
            assert not flags, path.name


def test_batches_for_another_number_of_processes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CldmError, match="made for 2 processes, and 1 train"):
        run(tmp_path, batches=SmallBatches(world=2))


def test_precisions_follow_one_another_in_one_process(tmp_path: Path) -> None:
    losses = {}
    for precision in ("fp32", "bf16", "fp32"):
        run(tmp_path / f"{precision}-{len(losses)}", precision=precision)
        losses[precision] = History(tmp_path / f"{precision}-{len(losses)}").series("loss")[0][1]
    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.02)


def test_the_nets_are_unwrapped_afterwards(tmp_path: Path) -> None:
    trainable = small_trainable()
    forward = trainable.net.forward
    config = small_config(tmp_path, precision="bf16")
    fit(trainable, SmallBatches(), config, out=tmp_path)
    assert trainable.net.forward == forward
    assert not hasattr(trainable.net, "_original_forward")


def test_infinite_gradients_of_fp16_are_left_to_its_loss_scale(tmp_path: Path) -> None:
    run(tmp_path, precision="fp16", lr_schedule="constant", warmup=0)
    norms = History(tmp_path).series("grad_norm")
    state = state_of(tmp_path, 6)
    assert len(norms) == 6
    assert all(value.isfinite().all() for value in state.values())


def test_a_loss_scale_that_leaves_all_steps_out_stops_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextmanager
    def scaled(config: TrainConfig) -> Iterator[Any]:
        with opened(config) as accelerator:
            accelerator.scaler = torch.amp.GradScaler("cpu")  # as on a GPU
            yield accelerator

    monkeypatch.setattr("controlnet_pack.cldm_core.training.loop.opened", scaled)
    trainable = small_trainable()
    trainable.parameters()[0].register_hook(lambda gradient: gradient * math.inf)
    config = small_config(tmp_path, steps=SKIPPED_AT_MOST + 8, precision="fp16", save_every=100)
    with pytest.raises(CldmError, match="is no finite number"):
        fit(trainable, SmallBatches(), config, out=tmp_path)


def test_8_bits_need_bitsandbytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(CldmError, match="needs the package bitsandbytes"):
        run(tmp_path, optimizer="adamw8bit")


def test_the_optimizer_is_the_originals(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.ones(1))
    made = make_optimizer([parameter], small_config(tmp_path), torch.device("cpu"))
    group = made.param_groups[0]
    assert (group["betas"], group["eps"], group["weight_decay"]) == ((0.9, 0.999), 1e-8, 0.01)


def test_it_trains_under_inference_mode_of_the_caller(tmp_path: Path) -> None:
    trainable = small_trainable()
    with torch.inference_mode():
        fit(trainable, SmallBatches(), small_config(tmp_path, steps=2), out=tmp_path)
    assert (tmp_path / "last.safetensors").exists()


def test_a_full_gpu_is_a_sentence_and_the_state_is_saved(tmp_path: Path) -> None:
    def spoil(index: int, batch: Batch) -> Batch:
        if index == 3:
            raise torch.cuda.OutOfMemoryError("tried to allocate 2 GiB")
        return batch

    with pytest.raises(CldmError, match=r"memory is full: .* goes on from step 3"):
        run(tmp_path, batches=SmallBatches(spoil=spoil))


def test_noise_depends_on_seed_step_part_and_row_alone() -> None:
    like = torch.zeros(2, 4, 3, 3)
    noise, timesteps = draw(torch.zeros(4, 4, 3, 3), 1000, (1, 2, 3))
    for rank in range(2):
        own = slice(2 * rank, 2 * rank + 2)
        part = draw(like, 1000, (1, 2, 3), rank=rank, world=2)
        assert torch.equal(part[0], noise[own])
        assert torch.equal(part[1], timesteps[own])
    for key in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert not torch.equal(draw(like, 1000, key)[0], noise[:2])


def test_timesteps_and_noise_are_of_the_right_distribution() -> None:
    noise, timesteps = draw(torch.zeros(4000, 1, 2, 2), 1000, (0, 0, 0))
    assert (int(timesteps.min()), int(timesteps.max())) == (0, 999)
    assert abs(float(timesteps.double().mean()) - 499.5) < 20
    assert abs(float(noise.mean())) < 0.05
    assert abs(float(noise.std()) - 1) < 0.05
