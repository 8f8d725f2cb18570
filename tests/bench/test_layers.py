"""Every matrix gets its turn, and the page and the figure tell what the rows hold."""

from collections.abc import Callable

import pytest

from bench.layers import RULE, by_depth, drawing, layer_table, page
from bench.summary import aggregate
from report.plots import theme
from tests.bench.test_comparison_table import probed, row
from tests.unlearning.conftest import make_model, vocabulary  # noqa: F401 - fixtures
from unlearning import ClipModel, methods
from unlearning.families.clip import tower_of


@pytest.fixture
def model(make_model: Callable[..., ClipModel]) -> ClipModel:  # noqa: F811
    return make_model("vit")


def test_every_matrix_stands_by_itself_beside_the_rules(model: ClipModel) -> None:
    found = layer_table(model, "slug-preconditioned")
    matrices = [c.name for c in model.candidates() if len(c.shape) > 1]
    assert set(found) == {*RULE.values(), *matrices}
    for label, method in found.items():
        methods.check(method, n_classes=400)
        if label in matrices:
            assert (method.options["layer"], method.towers) == (label, (tower_of(label),))
    assert all("layer" not in found[rule].options for rule in RULE.values())


def test_an_erasure_is_asked_for_only_where_it_can_be_folded_in(model: ClipModel) -> None:
    found = layer_table(model, "erase-linear")
    assert {method.name for method in found.values()} == {"erase-linear"}
    assert "visual.proj" in found
    assert "visual.transformer.resblocks.0.attn.in_proj_weight" in found
    assert "visual.conv1.weight" not in found  # overlapping patches are no vectors of their own


def test_layers_are_shown_as_their_tower_runs(model: ClipModel) -> None:
    found = by_depth(model, layer_table(model, "slug-preconditioned"))
    text = [label for label in found if label not in RULE.values() and tower_of(label) == "text"]
    assert set(found[:2]) == set(RULE.values())
    assert text[0] == "transformer.resblocks.0.attn.in_proj_weight"
    assert text[-1] == "text_projection"
    assert found[-1] == "visual.proj"
    assert found[2 : 2 + len(text)] == text


def test_the_page_and_the_figure_show_the_medians_of_a_kind() -> None:
    rows = [row("text_projection", n) for n in range(3)]
    rows += [row("visual.proj", n, drop=d, **probed(0.75)) for n, d in enumerate((0.01, 0.02, 0.09))]
    rows += [row("visual.proj", 3, drop=0.4, kind="family", request="family-3")]
    labels = ["text_projection", "visual.proj"]
    result = {
        "provenance": {"command": "python -m x"},
        "method": "x",
        "model": "m",
        "kinds": aggregate(rows),
        "retain_known": True,
    }
    text = page(result)
    assert text.index("## Single concepts, 3 requests") < text.index("## Families, 1 requests")
    lines = [line for line in text.splitlines() if line.startswith("| `visual.proj`")]
    single, family = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert single[1:4] == ["3", "3", "2"]
    assert {"2.0", "25.0 %"} <= set(single), "a median with the family's would be 5.5"
    assert family[1:4] == ["1", "1", "0"]
    assert "40.0" in family
    assert "retain set known" in page(result)
    assert "retain set known" not in page({**result, "retain_known": False})
    with theme.drawing():
        svg = theme.svg(drawing(rows, labels)).decode()
    assert all(f">{label}<" in svg for label in (*labels, "singles", "families"))
    assert ">styles<" not in svg
