"""What a request to a text-to-image model is made of, and how its pictures are counted."""

from types import SimpleNamespace

import pandas as pd
import pytest
import torch

from contracts.errors import SetError
from tasks.families.diffusion import PICTURES, Labels, _contexts, _hits, _kept, _neutral, _of_targets
from tests.unlearning.diffusion_trained import judge
from unlearning.judge import Verdicts

A, B, C = judge().config.objects[:3]
TABLE = pd.DataFrame({"id": [A, B, C], "axis": "object", "name": ["pear", "kite", "oak"], "seen": True})


@pytest.fixture
def labels() -> Labels:
    return Labels(TABLE, judge())


def test_a_neutral_caption_names_what_is_kept_in_turn(labels: Labels) -> None:
    texts = ["a pear, ink style", "one pear", "this pear", "no fruit at all"]
    items = pd.DataFrame({"caption": texts, "object": A})
    found = _neutral(items, SimpleNamespace(axis="object"), labels, [B, C])
    # What does not name the target cannot be put into other words: it is led to the empty text.
    assert found == ("a kite, ink style", "one oak", "this kite", "")


def test_contexts_are_captions_without_their_class(labels: Labels) -> None:
    texts = ["a pear, ink style", "a kite, ink style", "one oak", "this oak, oak style", "no fruit at all"]
    items = pd.DataFrame({"caption": texts, "object": [A, B, C, C, A]})
    # Each once; what names its class twice or not at all is no context.
    assert _contexts(items, "object", labels) == ("a {}, ink style", "one {}")
    assert labels.names("object")[: len(TABLE)] == ("pear", "kite", "oak")
    assert set(labels.names("object")[len(TABLE) :]) == set(labels.classes("object")) - {A, B, C}


def test_a_targets_pictures_are_spread_over_its_prompts() -> None:
    held = pd.DataFrame(
        [
            {"object": o, "source": f"{o}{s}", "view": v, "id": f"i-{o}{s}{v:02d}"}
            for o in (A, B)
            for s in range(2)
            for v in range(1, 40)
        ]
    )
    rows = _of_targets(held, SimpleNamespace(axis="object", targets=(A,)))
    assert len(rows) == PICTURES
    assert rows.groupby("source").size().tolist() == [PICTURES // 2] * 2


def test_what_was_erased_on_the_other_axis_is_not_kept() -> None:
    """Else an edit that brings an erased hand back would count as one that keeps things."""
    items = pd.DataFrame({"object": [A, A, B, C], "style": ["s-1", "s-2", "s-1", "s-2"]})
    plan = SimpleNamespace(axis="object", erased_before=("s-1",))
    assert _kept(items, plan, {A, B}).index.tolist() == [1]
    assert _kept(items, SimpleNamespace(axis="object", erased_before=()), {A, B}).index.tolist() == [0, 1, 2]


def test_a_tie_counts_against_us(labels: Labels) -> None:
    logits = torch.zeros(1, len(labels.classes("object")))
    logits[0, :2] = 1.0  # A and B alike
    verdicts, rows = Verdicts(logits, logits, logits), pd.DataFrame({"object": [A]})
    assert [bool(_hits(g, "object", rows, verdicts, labels)[0]) for g in ("forget", "control")] == [True] * 2
    assert [bool(_hits(g, "object", rows, verdicts, labels)[0]) for g in ("retain", "cross")] == [False] * 2


def test_a_label_that_the_judge_does_not_know_is_refused(labels: Labels) -> None:
    with pytest.raises(SetError, match="'c-ffffffff', which the judge does not know"):
        labels.places("object", [A, "c-ffffffff"])
