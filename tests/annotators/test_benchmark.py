"""benchmarks/annotators.py: that it leaves no annotator out, and shares its time as it says."""

import pytest

from controlnet_pack.annotators import ANNOTATORS
from controlnet_pack.benchmarks import annotators_budget as budget
from controlnet_pack.benchmarks.annotators_cases import CASES

HEAVY, LIGHT = ("heavy", 1024), ("light", 512)


def test_every_annotator_is_measured_or_left_out_with_a_reason():
    assert {case.annotator for case in CASES} == {*ANNOTATORS}
    assert len({case.name for case in CASES}) == len(CASES)


def test_what_is_left_out_has_no_case_that_is_measured():
    left_out = {case.annotator for case in CASES if case.lacks}
    assert left_out.isdisjoint(case.annotator for case in CASES if not case.lacks)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_settings_are_the_annotators(case):
    assert {*case.settings} <= {*ANNOTATORS[case.annotator].settings}


def test_networks_are_the_annotators_with_weights():
    assert {case.annotator for case in CASES if case.net} == {
        name for name, record in ANNOTATORS.items() if record.weights
    }


def test_a_place_gets_its_part_of_what_is_left():
    shared = budget.Budget(ends=100.0, weights={HEAVY: 6.0, LIGHT: 1.0})
    assert shared.share(HEAVY, now=30.0) == pytest.approx(60)
    assert shared.share(LIGHT, now=30.0) == pytest.approx(70)
    assert shared.share(HEAVY, now=130.0) == 0


def test_quick_ones_have_all_rounds_with_several_too():
    found = budget.plan(seconds=60, single=0.1, looped=0.1, several=8, least=5)
    assert found == budget.Plan(budget.MOST_ROUNDS, 8, budget.MOST_ROUNDS)


def test_one_picture_has_its_rounds_whatever_that_takes():
    found = budget.plan(seconds=0, single=20, looped=10, several=8, least=3)
    assert (found.rounds, found.with_several) == (3, 0)


def test_without_several_pictures_the_time_is_for_one():
    assert budget.plan(50, single=5, looped=5, several=1, least=3) == budget.Plan(10, 1, 0)


def test_several_become_fewer_where_they_take_too_long():
    found = budget.plan(seconds=30, single=2, looped=2, several=8, least=3)
    assert found == budget.Plan(rounds=3, several=4, with_several=3)


@pytest.mark.parametrize("seconds", [1, 20, 45, 70, 300, 2000])
def test_a_plan_keeps_to_the_time_but_for_the_least(seconds):
    found = budget.plan(seconds, single=7, looped=4, several=8, least=3)
    spent = found.rounds * 7 + found.with_several * found.several * 4
    assert spent <= max(seconds, 3 * 7)
    assert found.rounds >= 3
