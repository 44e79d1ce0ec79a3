"""The sudden convergence in curves of adherence."""

import doctest
import math

import numpy as np
import pytest

from controlnet_pack.cldm_core import CldmError
from controlnet_pack.cldm_core.training import convergence
from controlnet_pack.cldm_core.training.convergence import Convergence, find, verdict
from controlnet_pack.cldm_core.training.history import History
from controlnet_pack.cldm_core.training.scores import SCORES

EVERY = 100
# As measured while the embedded model's ControlNets were trained, from step 100 on.
CANNY = (
    *(0.2678, 0.2737, 0.5125, 0.6122, 0.6493, 0.6671, 0.6797, 0.6870),
    *(0.6841, 0.6952, 0.6992, 0.7006, 0.7015, 0.7043, 0.7051),
)
MASK = (0.6106, 0.9052, 0.9082, 0.8896, 0.8979, 0.8997)

SHAPES = {
    "a sudden jump": lambda x: 0.3 + 0.4 * (x > 0.475),
    "a steep sigmoid": lambda x: 0.3 + 0.4 / (1 + np.exp((0.5 - x) / 0.02)),
    "a sigmoid": lambda x: 0.3 + 0.4 / (1 + np.exp((0.5 - x) / 0.04)),
    "an early jump": lambda x: 0.3 + 0.4 * (x > 0.08),
    "a late jump": lambda x: 0.3 + 0.4 * (x > 0.8),
    "a small jump": lambda x: 0.3 + 0.15 * (x > 0.475),
    "a jump and a slow rise": lambda x: 0.3 + 0.25 * (x > 0.31) + 0.15 * x,
    "a jump that levels": lambda x: np.where(x > 0.29, 0.7 - 0.2 * (0.29 / x) ** 2, 0.3),
}
SLOW = {
    "nothing": lambda x: 0.3 + 0 * x,
    "a line": lambda x: 0.3 + 0.4 * x,
    "a steep line": lambda x: 0.1 + 0.9 * x,
    "a falling line": lambda x: 0.7 - 0.4 * x,
    "a fall": lambda x: 0.7 - 0.4 * (x > 0.5),
    "a square root": lambda x: 0.3 + 0.4 * np.sqrt(x),
    "a parabola": lambda x: 0.3 + 0.4 * x**2,
    "a slow saturation": lambda x: 0.3 + 0.4 * (1 - np.exp(-x / 0.3)),
    "a slow sigmoid": lambda x: 0.3 + 0.4 / (1 + np.exp((0.5 - x) / 0.15)),
    "waves": lambda x: 0.4 + 0.1 * np.sin(9 * x),
    "a jump in the last two": lambda x: 0.3 + 0.4 * (x > 0.92),
}


def curve(values, first: int = 0) -> list[tuple[int, float]]:
    return [(first + EVERY * index, float(value)) for index, value in enumerate(values)]


def noisy(shape, count: int, deviation: float, seed: int) -> list[tuple[int, float]]:
    draws = np.random.default_rng(seed).normal(0, deviation, count)
    return curve(shape(np.linspace(0, 1, count) + 1e-9) + draws)


@pytest.mark.parametrize("deviation", [0.0, 0.003, 0.01, 0.02])
@pytest.mark.parametrize("name", SHAPES)
def test_jumps_are_found_at_their_step(name: str, deviation: float) -> None:
    shape, count = SHAPES[name], 25
    clean = shape(np.linspace(0, 1, count) + 1e-9)
    jump = int(np.argmax(np.diff(clean)))
    for seed in range(5):
        found = find(noisy(shape, count, deviation, seed))
        assert found is not None, (name, seed)
        assert found.lost is None
        assert found.between[0] < found.step <= found.between[1]
        # The steepest interval, and with noise in a sigmoid one beside it.
        assert abs(found.step / EVERY - (jump + 0.5)) <= 1.5, (name, seed, found)


@pytest.mark.parametrize("name", ["a sudden jump", "an early jump", "a late jump"])
def test_a_jump_is_found_between_the_two_evaluations_around_it(name: str) -> None:
    for seed in range(10):
        found = find(noisy(SHAPES[name], 25, 0.01, seed))
        clean = SHAPES[name](np.linspace(0, 1, 25) + 1e-9)
        jump = EVERY * int(np.argmax(np.diff(clean)))
        assert found is not None
        assert found.between == (jump, jump + EVERY)
        assert found.before == pytest.approx(0.3, abs=0.03)
        assert found.after == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("deviation", [0.0, 0.003, 0.01])
@pytest.mark.parametrize("name", SLOW)
def test_curves_without_a_jump_have_none(name: str, deviation: float) -> None:
    for count in (4, 6, 10, 25):
        for seed in range(5):
            assert find(noisy(SLOW[name], count, deviation, seed)) is None, (name, count, seed)


@pytest.mark.parametrize("name", ["nothing", "a line", "a parabola", "a slow saturation"])
def test_strong_noise_is_hardly_ever_taken_for_a_jump(name: str) -> None:
    found = [find(noisy(SLOW[name], 20, 0.04, seed)) for seed in range(30)]
    assert sum(one is not None for one in found) <= 2


@pytest.mark.parametrize("values", [[], [0.3], [0.3, 0.7], [0.3, 0.7, 0.7]])
def test_few_evaluations_are_no_evidence(values: list[float]) -> None:
    assert find(curve(values)) is None


@pytest.mark.parametrize("place", range(1, 24))
def test_a_spike_is_no_convergence(place: int) -> None:
    values = [0.3] * 25
    values[place] = 0.9
    assert find(curve(values)) is None


def test_an_early_spike_does_not_hide_the_jump() -> None:
    values = [0.3] * 10 + [0.7] * 10
    values[3] = 0.95
    found = find(curve(values))
    assert found is not None
    assert found.between == (900, 1000)


def test_a_dip_after_the_jump_does_not_hide_it() -> None:
    values = [0.3] * 6 + [0.7] * 10
    values[9] = 0.1
    found = find(curve(values))
    assert found is not None
    assert (found.between, found.lost) == ((500, 600), None)


def test_falling_back_is_said() -> None:
    found = find(curve([0.3] * 5 + [0.7] * 8 + [0.32] * 5))
    assert found is not None
    assert found.between == (400, 500)
    assert found.lost == 1300
    assert str(found).endswith("It was lost again by step 1300: take a checkpoint from before.")


def test_one_bad_evaluation_at_the_end_is_not_falling_back() -> None:
    found = find(curve([0.3] * 5 + [0.7] * 8 + [0.32]))
    assert found is not None
    assert found.lost is None


def test_a_second_jump_after_falling_back_counts() -> None:
    found = find(curve([0.3] * 6 + [0.7] * 5 + [0.3] * 8 + [0.7] * 9))
    assert found is not None
    assert (found.between[1] in (600, 1900), found.lost) == (True, None)


def test_the_canny_net_of_the_embedded_model_converged_between_200_and_300() -> None:
    found = find(curve(CANNY, EVERY))
    assert found is not None
    assert found.between == (200, 300)
    assert 270 < found.step < 300
    assert found.before == pytest.approx(0.27, abs=0.01)
    assert found.after == pytest.approx(0.69, abs=0.01)


def test_the_mask_net_of_the_embedded_model_converged_between_100_and_200() -> None:
    found = find(curve(MASK, EVERY))
    assert found is not None
    assert found.between == (100, 200)


@pytest.mark.parametrize("values", [CANNY, MASK], ids=["canny", "mask"])
def test_what_was_found_is_not_unsaid_while_the_level_holds(values: tuple[float, ...]) -> None:
    found = [find(curve(values[:count], EVERY)) for count in range(4, len(values) + 1)]
    first = next(index for index, one in enumerate(found) if one is not None)
    assert all(one is not None for one in found[first:])
    assert len({one.between for one in found[first:]}) == 1
    assert len({one.certain for one in found[first:]}) == 1


def test_the_evaluation_that_left_no_doubt_is_named() -> None:
    found = find(curve([0.3] * 5 + [0.7] * 8))
    assert found is not None
    assert found.certain == 700


def test_the_step_is_where_the_curve_crosses_the_middle() -> None:
    found = find([(0, 0.3), (50, 0.3), (100, 0.3), (200, 0.4), (300, 0.7), (400, 0.7), (500, 0.7)])
    assert found is not None
    # From 0.4 to 0.7 the middle 0.5 lies a third of the way.
    assert found.step == pytest.approx(233, abs=1)


def test_evaluations_may_be_far_apart_and_unevenly_spread() -> None:
    steps = [0, 500, 1000, 4000, 5000, 9000, 10_000, 30_000]
    found = find(list(zip(steps, [0.3, 0.31, 0.3, 0.3, 0.66, 0.7, 0.71, 0.7], strict=True)))
    assert found is not None
    assert found.between == (4000, 5000)


def test_order_and_repetition_do_not_matter() -> None:
    points = curve([0.3] * 5 + [0.7] * 6)
    assert find([(300, 0.9), *points[::-1]]) == find(points)


def test_evaluations_without_a_number_are_left_out() -> None:
    points = curve([0.3] * 5 + [0.7] * 6)
    assert find([*points, (250, math.nan), (950, math.inf)]) == find(points)


def test_of_a_score_of_which_less_is_better_a_fall_is_the_convergence() -> None:
    found = find(curve([40, 41, 40, 39, 12, 11, 12, 11]), SCORES["colour_error"])
    assert found is not None
    assert found.between == (300, 400)
    assert (found.before, found.after) == (40.0, 11.5)
    assert str(found) == (
        "Sudden convergence at about step 349 (between 300 and 400): colour error fell from "
        "40.0 dE to 11.5 dE."
    )
    assert find(curve([12, 11, 12, 11, 40, 41, 40, 39]), SCORES["colour_error"]) is None


def test_a_sentence_says_it() -> None:
    found = Convergence(285, (200, 300), 0.27, 0.68, 600, score=SCORES["edge_f1"])
    assert str(found) == (
        "Sudden convergence at about step 285 (between 200 and 300): edge F1 rose from 0.27 to "
        "0.68."
    )


def test_a_history_brings_its_score(tmp_path) -> None:
    history = History(tmp_path)
    assert find(history) is None
    for step, value in curve([40, 41, 40, 39, 12, 11, 12, 11]):
        history.note(step, loss=0.1)
        history.note(step, adherence=value, score="colour_error", zero_norms={})
    found = find(history)
    assert found is not None
    assert found.score is SCORES["colour_error"]
    assert found.between == (300, 400)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], "Adherence wasn't measured."),
        (
            [0.3, 0.7],
            "No sudden convergence in 100 steps so far, and too few evaluations to tell: adherence "
            "is 0.70.",
        ),
        (
            [0.3, 0.31, 0.29, 0.3, 0.32, 0.31],
            "No sudden convergence in 500 steps so far: adherence stays at about 0.31.",
        ),
        (
            [0.2, 0.3, 0.4, 0.5, 0.6, 0.7],
            "No sudden convergence in 500 steps so far, but adherence gets better: from 0.30 to "
            "0.60.",
        ),
        (
            [0.3] * 4 + [0.7] * 4,
            "Sudden convergence at about step 350 (between 300 and 400): adherence rose from 0.30 "
            "to 0.70.",
        ),
    ],
)
def test_there_is_a_verdict_on_every_run(values: list[float], expected: str) -> None:
    assert verdict(curve(values)) == expected


def test_the_verdict_on_a_score_of_which_less_is_better_is_in_its_unit() -> None:
    falling = curve([40, 36, 32, 28, 24, 20])
    assert verdict(falling, SCORES["colour_error"]) == (
        "No sudden convergence in 500 steps so far, but colour error gets better: from 36.0 dE to "
        "24.0 dE."
    )
    assert "stays at about 36.0 dE" in verdict(
        [(500 - step, value) for step, value in falling], SCORES["colour_error"]
    )


def test_steps_below_zero_are_refused() -> None:
    with pytest.raises(CldmError, match="step -1, expected whole numbers from 0 on"):
        find([(-1, 0.5)])


def test_the_example_is_right() -> None:
    assert doctest.testmod(convergence) == (0, 2)


def test_a_rehearsals_jump_is_named_however_often_it_was_evaluated() -> None:
    # benchmarks/results/rehearsal-pictures.json: the embedded model learns Canny edges.
    scores = [0.2585, 0.279, 0.2851, 0.2896, 0.3007, 0.4289, 0.5385, 0.5918, 0.6141, 0.624]
    curve = [(50 * index, value) for index, value in enumerate([*scores, 0.6428, 0.6513, 0.6588])]

    for found in (find(curve), find(curve[::2])):
        assert found is not None
        assert found.between == (200, 300)
        assert 255 <= found.step <= 270
