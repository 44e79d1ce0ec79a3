"""Evaluations in the middle of a training."""

import logging
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from controlnet_pack.annotators import canny
from controlnet_pack.cldm_core import CldmError, tiny
from controlnet_pack.cldm_core.control import Control
from controlnet_pack.cldm_core.pictures import middle, read_picture
from controlnet_pack.cldm_core.pipeline import Pipeline, Settings
from controlnet_pack.cldm_core.training.evaluate import (
    Evaluation,
    Evaluator,
    HeldOut,
    fitted,
    unwrapped,
)
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.made_hints import make_hint
from controlnet_pack.cldm_core.training.scores import SCORES
from controlnet_pack.cldm_core.training.trainables import make_trainable
from controlnet_pack.cldm_core.training.zero_norms import zero_norms

SIDE = 64
QUICK = {"steps": 3, "guidance": 3.0}


def picture() -> np.ndarray:
    return middle(read_picture(tiny.EXAMPLE), SIDE, SIDE)


def held_out(count: int = 2) -> list[HeldOut]:
    turned = [np.ascontiguousarray(np.rot90(picture(), index)) for index in range(count)]
    return [HeldOut(f"{i}", f"hut {i}", canny(one), one) for i, one in enumerate(turned)]


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return tiny.load_pipeline()


@pytest.fixture
def net() -> nn.Module:
    return tiny.load_control("canny").requires_grad_(True).train()


class Recorded:
    """In the place of a pipeline: keeps what it was called with, gives flat pictures."""

    def __init__(self, grey: int = 9) -> None:
        self.grey = grey
        self.calls: list[tuple[list[str], Control, Settings, str]] = []

    def __call__(self, prompt, controls, settings, *, negative: str) -> np.ndarray:
        (control,) = controls
        self.calls.append((list(prompt), control, settings, negative))
        shape = (settings.count, settings.height, settings.width, 3)
        return np.full(shape, self.grey, np.uint8)


def test_a_net_that_follows_its_hints_scores_better_than_a_new_one(pipeline, net) -> None:
    evaluator = Evaluator(pipeline, held_out(), canny, "edge_f1", steps=8, guidance=3.0)
    trained = evaluator(net, 100)
    new = evaluator(make_trainable("controlnet", pipeline.unet).net, 0)
    assert trained.score > new.score + 0.2
    assert trained.score == pytest.approx(np.mean(trained.per_picture))
    assert (trained.step, len(trained.per_picture), len(trained.pictures)) == (100, 2, 2)


def test_evaluations_of_one_net_are_equal_bit_for_bit(pipeline, net) -> None:
    evaluator = Evaluator(pipeline, held_out(), canny, **QUICK)
    first, second = evaluator(net, 1), evaluator(net, 2)
    assert all(map(np.array_equal, first.pictures, second.pictures))
    assert first.per_picture == second.per_picture


def test_a_sample_is_the_same_in_every_batch(pipeline, net) -> None:
    whole, single = (
        Evaluator(pipeline, held_out(3), None, batch=batch, **QUICK)(net, 0) for batch in (8, 1)
    )
    for one, other in zip(whole.pictures, single.pictures, strict=True):
        assert np.abs(one.astype(int) - other).max() <= 1


def test_seeds_change_the_samples(pipeline, net) -> None:
    first, second = (
        Evaluator(pipeline, held_out(1), None, seeds=seeds, **QUICK)(net, 0) for seeds in (1, 2)
    )
    assert not np.array_equal(first.pictures[0], second.pictures[0])


def test_hints_of_several_sizes_keep_their_order_prompts_and_seeds(net) -> None:
    sizes = [(64, 64), (64, 64), (64, 128), (64, 64)]
    hints = [
        HeldOut(f"{i}", f"prompt {i}", np.full((*size, 3), i, np.uint8))
        for i, size in enumerate(sizes)
    ]
    recorded = Recorded()
    evaluation = Evaluator(recorded, hints, None, seeds=50, negative="blurred")(net, 0)
    assert [one.shape[:2] for one in evaluation.pictures] == sizes
    calls = [
        (prompts, settings.seed, settings.count, (settings.height, settings.width), negative)
        for prompts, _, settings, negative in recorded.calls
    ]
    assert calls == [
        (["prompt 0", "prompt 1"], 50, 2, (64, 64), "blurred"),
        (["prompt 2"], 52, 1, (64, 128), "blurred"),
        (["prompt 3"], 53, 1, (64, 64), "blurred"),
    ]
    assert [
        round(float(one) * 255)
        for _, control, *_ in recorded.calls
        for one in control.hint[:, 0, 0, 0]
    ] == [0, 1, 2, 3]


def test_settings_reach_the_pipeline(net) -> None:
    recorded = Recorded()
    Evaluator(recorded, held_out(1), None, steps=7, guidance=2.5, scheduler="euler", strength=0.5)(
        net, 0
    )
    ((_, control, settings, _),) = recorded.calls
    assert (settings.steps, settings.guidance, settings.scheduler) == (7, 2.5, "euler")
    assert (control.net, control.strength, control.blocks) == (net, 0.5, None)


def test_where_the_middle_alone_is_trained_it_alone_is_sampled_with(net) -> None:
    recorded = Recorded()
    Evaluator(recorded, held_out(1), None, only_mid_control=True)(net, 0)
    assert recorded.calls[0][1].blocks == (0.0,) * 6 + (1.0,)


def test_nothing_scores_without_an_annotator(net) -> None:
    evaluation = Evaluator(Recorded(), held_out(), None)(net, 0)
    assert evaluation.score is None
    assert evaluation.per_picture == ()
    assert set(evaluation.numbers()) == {"zero_norms"}


def test_the_hint_is_compared_with_that_of_the_sample(net) -> None:
    def brightness(one: np.ndarray) -> np.ndarray:
        return np.full_like(one, one.max())

    white, black = (np.full((SIDE, SIDE, 3), value, np.uint8) for value in (255, 0))
    hints = [HeldOut("white", "", white), HeldOut("black", "", black)]
    evaluation = Evaluator(Recorded(grey=200), hints, brightness, "mask_iou")(net, 0)
    assert evaluation.per_picture == (1.0, 0.0)
    assert evaluation.score == 0.5


def test_something_else_than_the_hint_may_be_wanted(net) -> None:
    hint, wanted = np.zeros((2, SIDE, SIDE, 3), np.uint8)
    wanted[:] = 255
    hints = [HeldOut("disc", "", hint, wanted=wanted)]
    evaluation = Evaluator(Recorded(grey=200), hints, lambda one: one, "mask_iou")(net, 0)
    assert evaluation.score == 1.0


def test_annotators_may_work_at_a_resolution_of_their_own(net) -> None:
    def larger(one: np.ndarray) -> np.ndarray:
        return np.full((96, 96, 3), 255, np.uint8)

    white = np.full((SIDE, SIDE, 3), 255, np.uint8)
    evaluation = Evaluator(Recorded(), [HeldOut("a", "", white)], larger, "mask_iou")(net, 0)
    assert evaluation.score == 1.0
    assert fitted(larger(white), white).shape == white.shape


def test_samples_are_scored_while_no_other_thread_makes_hints(net) -> None:
    together = []

    def maker(one: np.ndarray) -> np.ndarray:
        together.append(threading.current_thread())
        time.sleep(0.01)
        assert together.pop() is threading.current_thread()
        assert not together
        return one

    with ThreadPoolExecutor(1) as pool:
        made = pool.map(lambda _: make_hint(maker, picture(), "a"), range(4))
        Evaluator(Recorded(), held_out(4), maker, "mask_iou")(net, 0)
        assert len([*made]) == 4


def test_an_annotator_that_fails_is_a_sentence(net) -> None:
    def broken(one: np.ndarray) -> np.ndarray:
        raise RuntimeError("no network")

    with pytest.raises(CldmError, match=r"'a' can't be scored.* no network"):
        Evaluator(Recorded(), [HeldOut("a", "", picture())], broken)(net, 0)


def test_keypoints_are_not_resized() -> None:
    points = np.ones((2, 18, 3))
    assert fitted(points, picture()) is points


def test_modes_of_all_modules_come_back(pipeline, net) -> None:
    net.middle_block.eval()
    pipeline.unet.train()
    modules = [*net.modules(), *pipeline.unet.modules()]
    before = [one.training for one in modules]
    seen: list[bool] = []

    def spy(one: np.ndarray) -> np.ndarray:
        seen.extend(module.training for module in modules)
        return canny(one)

    Evaluator(pipeline, held_out(1), spy, **QUICK)(net, 0)
    after = [one.training for one in modules]
    pipeline.unet.eval()
    assert set(before) == {True, False}
    assert not any(seen)
    assert after == before


def test_modes_and_random_numbers_come_back_after_an_error(net) -> None:
    def failing(one: np.ndarray) -> np.ndarray:
        random.random()
        raise ValueError("no such picture.")

    random.seed(1)
    state = random.getstate()
    message = "sample of the held-out hint '0' can't be scored, .* be made: no such picture.$"
    with pytest.raises(CldmError, match=message):
        Evaluator(Recorded(), held_out(1), failing)(net, 0)
    assert net.training
    assert random.getstate() == state


def test_random_numbers_go_on_as_if_nothing_had_been_sampled(pipeline, net) -> None:
    def careless(one: np.ndarray) -> np.ndarray:
        random.seed(99), np.random.seed(99), torch.manual_seed(99)
        return canny(one)

    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))

    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    expected = [draws(), draws()]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    found = [draws()]
    Evaluator(pipeline, held_out(1), careless, **QUICK)(net, 0)
    assert [*found, draws()] == expected


def steps(pipeline: Pipeline, kind: str, evaluator: Evaluator | None, autocast: bool) -> list:
    """The weights after two steps, with an evaluation before and between."""
    torch.manual_seed(3)
    rank = None if kind == "controlnet" else 4
    trainable = make_trainable(kind, pipeline.unet, rank=rank)
    optimizer = torch.optim.AdamW(trainable.parameters(), 1e-3)
    hint = torch.rand(1, 3, SIDE, SIDE)
    for step in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if evaluator:
                evaluator(trainable.net, step)
            x, t = torch.randn(1, 4, SIDE // 8, SIDE // 8), torch.tensor([500.0])
            context = torch.randn(1, 32, 128)
            added = trainable.net(x, None, t, context, hint=hint)
            options = {"patches": added} if kind == "lllite" else {"control": added}
            out = trainable.unet(x, t, context, **options)
        out.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return [value.detach().clone() for value in trainable.parameters()]


@pytest.mark.parametrize("autocast", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["controlnet", "control_lora", "lllite"])
def test_training_goes_on_bit_for_bit_as_without_evaluations(pipeline, kind, autocast) -> None:
    evaluator = Evaluator(pipeline, held_out(1), canny, steps=1, guidance=1.0)
    with_, without = (steps(pipeline, kind, one, autocast) for one in (evaluator, None))
    assert all(map(torch.equal, with_, without))
    assert any(bool(value.any()) for value in with_)


def test_a_net_trained_in_autocast_on_a_base_in_half_precision_is_sampled(net) -> None:
    pipeline = tiny.load_pipeline(dtype=torch.bfloat16)
    exact = Evaluator(tiny.load_pipeline(), held_out(1), canny, **QUICK)(net, 0)
    implied = Evaluator(pipeline, held_out(1), canny, **QUICK)(net, 0)
    told = Evaluator(pipeline, held_out(1), canny, precision=torch.bfloat16, **QUICK)(net, 0)
    assert np.array_equal(implied.pictures[0], told.pictures[0])
    assert np.abs(implied.pictures[0].astype(float) - exact.pictures[0]).mean() < 8


def test_texts_are_read_and_pictures_decoded_without_autocast(pipeline, net) -> None:
    seen: list[tuple[str, bool]] = []

    def note(name: str) -> None:
        seen.append((name, torch.is_autocast_enabled("cpu")))

    class Noted:
        def decode(self, latents: torch.Tensor, /) -> torch.Tensor:
            note("decode")
            return pipeline.autoencoder.decode(latents)

    def encode_text(prompts: list[str]) -> torch.Tensor:
        note("text")
        return pipeline.encode_text(prompts)

    noted = replace(pipeline, encode_text=encode_text, autoencoder=Noted())
    hooks = [
        module.register_forward_pre_hook(lambda *_, name=name: note(name))
        for name, module in (("unet", pipeline.unet), ("net", net))
    ]
    Evaluator(noted, held_out(1), None, steps=1, precision=torch.bfloat16)(net, 0)
    for hook in hooks:
        hook.remove()
    assert (seen[0], seen[-1]) == (("text", False), ("decode", False))
    assert set(seen[1:-1]) == {("unet", True), ("net", True)}


def test_wrapped_nets_are_unwrapped(net) -> None:
    class Compiled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._orig_mod = net

    assert unwrapped(Compiled()) is net
    assert unwrapped(net) is net


def test_black_samples_are_told(net, caplog) -> None:
    with caplog.at_level(logging.WARNING, "cldm_core"):
        Evaluator(Recorded(grey=0), held_out(2), None)(net, 300)
    assert "2 of 2 samples at step 300 are all black, 0 first: NaN" in caplog.text


def test_evaluations_go_into_the_history(net, tmp_path) -> None:
    history = History(tmp_path)
    evaluation = Evaluator(Recorded(), held_out(), canny)(net, 200)
    history.note(evaluation.step, **evaluation.numbers())
    assert history.series("adherence") == [(200, evaluation.score)]
    assert history.mappings("zero_norms") == [(200, evaluation.zero_norms)]
    (row,) = history.read()
    assert row["score"] == "edge_f1"
    assert row["per_picture"] == list(evaluation.per_picture)


@pytest.mark.parametrize(
    ("hints", "message"),
    [
        ([], "no held-out hints to evaluate with"),
        ([HeldOut("a", "", np.zeros((64, 60, 3), np.uint8))], "picture is 60x64: both sides"),
        ([HeldOut("a", "", np.zeros((64, 64, 3), np.float32))], "'a' is float32 .64, 64, 3., exp"),
        ([HeldOut("a", "", np.zeros((64, 64), np.uint8))], "expected uint8"),
    ],
)
def test_hints_that_do_not_fit_are_refused_at_once(hints, message: str) -> None:
    with pytest.raises(CldmError, match=message):
        Evaluator(Recorded(), hints, canny)


def test_unknown_scores_are_refused_at_once() -> None:
    with pytest.raises(CldmError, match="There is no score 'fid'"):
        Evaluator(Recorded(), held_out(1), canny, "fid")


def test_scores_may_be_given_themselves(net) -> None:
    evaluation = Evaluator(Recorded(), held_out(1), canny, SCORES["colour_error"])(net, 0)
    assert isinstance(evaluation, Evaluation)
    assert evaluation.scored_by is SCORES["colour_error"]


def test_zero_norms_are_those_of_weight_and_bias(net) -> None:
    norms = zero_norms(net)
    assert list(norms) == ["hint", *(f"z{index}" for index in range(6)), "middle"]
    last = net.zero_convs[5][0]
    both = torch.cat([last.weight.detach().ravel(), last.bias.detach()])
    assert norms["z5"] == pytest.approx(float(both.norm()), rel=1e-5)


@pytest.mark.parametrize("kind", ["controlnet", "control_lora", "lllite"])
def test_new_nets_have_norms_of_zero(pipeline, kind: str) -> None:
    norms = zero_norms(make_trainable(kind, pipeline.unet).net)
    assert len(norms) >= 3
    assert set(norms.values()) == {0.0}


def test_norms_of_an_lllite_are_by_block(pipeline) -> None:
    net = make_trainable("lllite", pipeline.unet).net
    layer = next(module.up[0] for module in net.parts().values())
    nn.init.ones_(layer.weight)
    norms = zero_norms(net)
    assert next(iter(norms.values())) == pytest.approx(layer.weight.numel() ** 0.5)
    assert sum(value > 0 for value in norms.values()) == 1


def test_other_modules_have_no_norms() -> None:
    assert zero_norms(nn.Linear(2, 2)) == {}
