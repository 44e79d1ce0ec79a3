"""Settings: what each kind takes, and what it refuses with which sentence."""

import re

import numpy as np
import pytest

from controlnet_pack.annotators import ANNOTATORS, AnnotatorError, Choice, Flag, Param
from controlnet_pack.annotators.settings import complete, example, from_text

SETTINGS = {
    "threshold": Param(100, 0, 255, "how strong"),
    "sigma": Param(0.5, 0.1, 8.0, "how wide"),
    "safe": Flag(False, "fewer greys"),
    "form": Choice("round", ("round", "square"), "what it looks like", also=("shape", "outline")),
}
DEFAULTS = {"threshold": 100, "sigma": 0.5, "safe": False, "form": "round"}


def refused(sentence: str):
    return pytest.raises(AnnotatorError, match=f"^{re.escape(sentence)}$")


def test_defaults():
    assert complete("x", SETTINGS, {}) == DEFAULTS


def test_kinds_are_python_s_own():
    given = {"threshold": np.int64(3), "sigma": np.float32(2), "safe": np.True_, "form": "square"}
    settings = complete("x", SETTINGS, given)
    assert settings == {"threshold": 3, "sigma": 2.0, "safe": True, "form": "square"}
    assert [type(value) for value in settings.values()] == [int, float, bool, str]


def test_a_whole_number_is_a_number():
    assert complete("x", SETTINGS, {"sigma": 1})["sigma"] == 1.0


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("threshold", 0.5, "threshold is 0.5, but it has to be a whole number."),
        ("threshold", True, "threshold is True, but it has to be a whole number."),
        ("threshold", 256, "threshold is 256, but it has to be from 0 to 255."),
        ("sigma", "wide", "sigma is 'wide', but it has to be a number."),
        ("sigma", float("nan"), "sigma is nan, but it has to be a number."),
        ("sigma", 0, "sigma is 0, but it has to be from 0.1 to 8.0."),
        ("safe", 1, "safe is 1, but it has to be True or False."),
        ("form", "oval", "form is 'oval', but it has to be one of: round, square."),
        ("form", None, "form is None, but it has to be one of: round, square."),
        ("outlin", 1, "x has no parameter 'outlin'; did you mean 'outline'? It has: threshold, "
                      "sigma, safe, form."),
        ("outline", 1, "outline is 1, but it has to be one of: round, square."),
        ("sgima", 1, "x has no parameter 'sgima'; did you mean 'sigma'? It has: threshold, "
                     "sigma, safe, form."),
    ],
)  # fmt: skip
def test_what_is_refused(name, value, sentence):
    with refused(sentence):
        complete("x", SETTINGS, {name: value})


@pytest.mark.parametrize("text", ["", " , ;\n"])
def test_a_text_of_nothing(text):
    assert from_text("x", SETTINGS, text) == {}


@pytest.mark.parametrize(
    "text",
    [
        "threshold: 7, sigma: 0.25, safe: yes, form: square",
        "threshold=7;sigma=.25;safe=True;form=square",
        "threshold : 7\nsigma: 25e-2\nsafe: 1\n form: square\n",
        "threshold: 7, sigma: .25, safe: enable, shape: square",
    ],
)
def test_a_text(text):
    expected = {"threshold": 7, "sigma": 0.25, "safe": True, "form": "square"}
    assert from_text("x", SETTINGS, text) == expected


def test_the_example_is_a_text():
    assert from_text("x", SETTINGS, example(SETTINGS)) == DEFAULTS


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("strong", "The settings say 'strong', expected a name and a value: threshold: 100, "
                   "sigma: 0.5, safe: False, form: round."),
        ("threshold: high", "threshold is 'high', but it has to be a whole number."),
        ("sigma: 9", "sigma is 9.0, but it has to be from 0.1 to 8.0."),
        ("safe: maybe", "safe is 'maybe', but it has to be yes or no."),
        ("size: 3", "x has no parameter 'size'. It has: threshold, sigma, safe, form."),
    ],
)  # fmt: skip
def test_texts_that_are_refused(text, sentence):
    with refused(sentence):
        from_text("x", SETTINGS, text)


def test_a_setting_by_another_name():
    for other in SETTINGS["form"].also:
        assert complete("x", SETTINGS, {other: "square"}) == {**DEFAULTS, "form": "square"}


def test_a_setting_by_two_names_is_refused():
    sentence = "form and outline are one parameter of x: leave one of them out."
    with refused(sentence):
        complete("x", SETTINGS, {"form": "round", "outline": "round"})
    with refused(sentence):
        from_text("x", SETTINGS, "form: round, outline: square")


@pytest.mark.parametrize("annotator", ANNOTATORS.values(), ids=lambda one: one.name)
def test_every_name_means_one_setting(annotator):
    names = [other for name, one in annotator.settings.items() for other in (name, *one.also)]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("annotator", "own", "others", "value"),
    [
        ("dwpose", "body", "detect_body include_body", False),
        ("openpose", "hands", "detect_hand include_hand", False),
        ("blazepose", "face", "detect_face include_face", False),
        ("openpose", "xinsir", "scale_stick_for_xinsr_cn xinsr_stick_scaling", True),
        ("binary", "threshold", "bin_threshold", 50),
        ("lineart_standard", "gaussian_sigma", "guassian_sigma", 2.0),
        ("tile", "pyrup_iters", "pyrUp_iters", 2),
        ("mlsd", "score_threshold", "thr_v", 0.3),
        ("mlsd", "dist_threshold", "thr_d", 0.3),
        ("midas_normal", "bg_threshold", "bg_th", 0.3),
        ("zoe", "gamma", "gamma_corrected", True),
    ],
)
def test_names_of_other_packages(annotator, own, others, value):
    settings = ANNOTATORS[annotator].settings
    for other in others.split():
        assert complete(annotator, settings, {other: value})[own] == value
