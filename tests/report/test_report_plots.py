"""The figures: same bytes each time, nothing from outside, odd input drawn and not dropped."""

import dataclasses
import itertools
import math
import re
import warnings
from xml.etree import ElementTree

import pytest

from contracts.values import Edit, LayerScore, Rate, StepTrial
from report import plots
from report.plots.profile import short_layer, spread
from report.plots.search import chosen_step, is_kept

TEXT = "{http://www.w3.org/2000/svg}text"


def words_of(svg: bytes) -> str:
    return " | ".join("".join(e.itertext()).strip() for e in ElementTree.fromstring(svg).iter(TEXT))


def drawn(record):
    pair = plots.Pair(
        "FA@1", record.measurements.rates.get("forget.fa1.before"), None, "low", "To be forgotten"
    )
    return {
        "profile": (plots.profile_svg, plots.profile_png, (record.profile, record.edits, record.names)),
        "search": (plots.search_svg, plots.search_png, (record.curve, record.trials, record.edits)),
        "intervals": (plots.intervals_svg, plots.intervals_png, ([pair],)),
    }


@pytest.mark.parametrize("figure", ["profile", "search", "intervals"])
def test_equal_input_gives_equal_bytes_as_svg_and_png(records, figure):
    svg, png, arguments = drawn(records["passed"])[figure]

    assert svg(*arguments) == svg(*arguments)
    assert png(*arguments) == png(*arguments)
    assert png(*arguments).startswith(b"\x89PNG")


@pytest.mark.parametrize("kind", ["passed", "failed family", "nothing measured", "hostile"])
@pytest.mark.parametrize("figure", ["profile", "search", "intervals"])
def test_an_svg_is_sound_follows_the_scheme_and_names_no_outside(records, kind, figure):
    svg, _, arguments = drawn(records[kind])[figure]
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph would be named in a log
        text = svg(*arguments).decode()

    ElementTree.fromstring(text)  # catches a name that is not escaped
    assert "@media (prefers-color-scheme:dark)" in text
    assert not re.search(r"<(script|image|metadata|foreignObject)\b|href=\"(?!#)|url\((?!#)", text)
    assert not re.search(r"\d{4}-\d\d-\d\dT", text)


def layer(name, importance, alignment, *, front=False, tower="vision"):
    return LayerScore(name, tower, 10, importance, alignment, front)


def test_layers_without_alignment_or_gradient_are_drawn_at_the_floor():
    scores = (
        layer("visual.a.weight", 0.1, 0.0, front=True),
        layer("visual.b.weight", 0.2, 0.3, front=True),
        layer("visual.c.weight", 0.0, math.nan),
    )

    told = words_of(plots.profile_svg({"c-1": scores}, (), {}))

    assert "≤0.0001" in told
    assert "a | b" in told
    assert "≤" not in words_of(plots.profile_svg({"c-1": scores[1:2]}, (), {}))


def test_one_concept_names_its_front_and_several_only_their_edits():
    scores = (layer("visual.a.weight", 0.1, 0.1, front=True), layer("visual.b.weight", 0.2, 0.3, front=True))
    edits = (Edit("visual.b.weight", "vision", 1.0, ("c-2",), 0.1),)

    one = words_of(plots.profile_svg({"c-2": scores}, edits, {"c-2": "mug"}))
    both = words_of(plots.profile_svg({"c-1": scores[::-1], "c-2": scores}, edits, {"c-2": "mug"}))

    assert "a | b (edited)" in one
    assert "b  mug" in both
    assert "edited" not in both  # the ring says it; the label has to say for which concept
    assert "2 layers, 2 concepts" in both


def test_concepts_that_were_profiled_as_one_are_drawn_as_one():
    scores = (layer("visual.a.weight", 0.1, 0.1, front=True), layer("visual.b.weight", 0.2, 0.3, front=True))
    edits = (Edit("visual.b.weight", "vision", 1.0, ("c-1", "c-2"), 0.1),)

    together = words_of(plots.profile_svg({"c-1": scores, "c-2": scores}, edits, {}))

    assert together == words_of(plots.profile_svg({"c-1": scores}, edits, {}))
    assert "a | b (edited)" in together
    assert "2 concepts" not in together


def test_a_large_front_is_cut_after_the_labels_that_fit():
    scores = [layer(f"visual.{i}.weight", 0.1 * 1.1**i, 0.01 * 1.1**i, front=True) for i in range(40)]
    edits = (Edit("visual.0.weight", "vision", 1.0, ("c-1",), 0.1),)

    told = words_of(plots.profile_svg({"c-1": scores}, edits, {}))

    assert "+ 26 more in the table" in told
    assert "0 (edited)" in told  # the least important layer, kept since it is the one that changed


@pytest.mark.parametrize(
    ("layer_name", "short"),
    [
        ("visual.transformer.resblocks.11.attn.out_proj.weight", "11.attn.out_proj"),
        ("transformer.resblocks.3.attn.in_proj_weight", "3.attn.in_proj"),
        ("visual.layer4.2.conv3.weight", "layer4.2.conv3"),
        ("text_projection", "text_projection"),
        ("visual.a_wrapper_of_a_wrapper.resblocks.0.attn.out_proj.weight", "a_wrap….0.attn.out_proj"),
    ],
)
def test_a_layer_is_named_as_in_the_paper(layer_name, short):
    assert short_layer(layer_name, 23) == short


@pytest.mark.parametrize("wanted", [[0.5] * 8, [0.0, 0.01, 0.99, 1.0], [-3.0, 0.2, 0.21, 7.0], [0.4], []])
def test_labels_keep_their_order_and_distance(wanted):
    heights = spread(wanted, gap=0.06)

    assert all(b - a >= 0.06 - 1e-9 for a, b in itertools.pairwise(heights))
    assert all(0.05 - 1e-9 <= h <= 0.95 + 1e-9 for h in heights)


def test_a_rate_that_was_not_measured_or_has_no_width_is_told():
    certain = Rate(10, 10, 10, 1.0, 1.0, 1.0)
    empty = Rate(0, 0, 0, math.nan, math.nan, math.nan)
    pairs = [plots.Pair("zero width", certain, certain, "high"), plots.Pair("x" * 90, None, empty, "low")]

    told = words_of(plots.intervals_svg(pairs))

    assert "100.0 → 100.0" in told
    assert "not measured → not measured" in told
    assert "x" * 43 + "…" in told


def trial(concept, place, step, retained=None):
    return StepTrial(concept, place, "vision", step, 0.0, 0.1, retained)


def test_the_chosen_step_of_one_concept_is_its_edit():
    edits = (Edit("a", "vision", 0.7, ("c-1",), 0.1),)

    assert chosen_step([trial("c-1", "a", 0.7, 0.8)], [], edits) == 0.7
    assert chosen_step([], [], edits) is None


def test_the_chosen_factor_of_several_concepts_is_recovered_from_the_kept_steps():
    # given two concepts in layer a, kept at steps 1 and 3, and an edit scaled by 1.5
    edits = (Edit("a", "vision", 6.0, ("c-1", "c-2"), 0.1),)
    trials = [trial("c-1", "a", 1.0, 0.8), trial("c-1", "a", 2.0), trial("c-2", "a", 3.0, 0.8)]
    trials += [trial("c-2", "b", 9.0, 0.7)]

    assert chosen_step([trial("*", "a", 1.5, 0.8)], trials, edits) == pytest.approx(1.5)
    assert [is_kept(t, edits) for t in trials] == [True, False, True, False]


def test_a_search_without_retained_rates_says_so(records):
    record = records["passed"]
    bare = [dataclasses.replace(t, retained_rate=None) for t in record.trials]

    told = words_of(plots.search_svg((), bare, record.edits))

    assert "no trial measured both rates" in told
    assert "no curve was recorded" in told
