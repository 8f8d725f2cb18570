"""What a record refuses, and what its JSON carries."""

import base64
import dataclasses
import json
import math

import pytest

from contracts.canonical import canonical_bytes
from contracts.errors import InputError
from contracts.values import SetRef
from report.record import Hit, Retrieval, to_json


def test_json_is_canonical_and_tells_what_the_page_tells(make):
    record = make()

    data = to_json(record)

    told = json.loads(data)
    assert canonical_bytes(told) == data
    assert told["headline"].startswith("Passed: forget accuracy (FA@1) is at most")
    assert told["plan_sha256"] == record.plan.sha256
    assert told["base_version"] == "1"
    assert told["measurements"]["rates"]["retain.ta1.after"]["n"] == 1290
    assert [topic for topic, _ in told["not_proved"]].count("Removal from the weights") == 1
    assert told["retrievals"][0]["before"][0] == {"label": "c-00000000", "score": 0.34}


def test_json_holds_no_picture(records):
    for record in records.values():
        assert b"iVBORw0KGgo" not in to_json(record)


def test_json_of_personal_sets_holds_no_paths(records):
    assert b"data/sets/" in to_json(records["passed"])
    assert b"data/sets/" not in to_json(records["nothing measured"])


def test_a_figure_that_is_not_finite_becomes_null(records):
    record = records["nothing measured"]
    assert math.isnan(record.measurements.rates["forget.fa1.after"].estimate)

    told = json.loads(to_json(record))

    assert told["measurements"]["rates"]["forget.fa1.after"]["estimate"] is None


@pytest.mark.parametrize(
    "link", ["https://e.example/", "//e.example/x", "/etc/x", "javascript:alert(1)", "a b"]
)
def test_data_docs_must_be_a_relative_link(make, link):
    with pytest.raises(InputError, match="relative link"):
        make(data_docs=link)


def test_data_docs_may_stand_beside_the_report(make):
    assert make(data_docs="../docs/run_1/index.html#top").data_docs == "../docs/run_1/index.html#top"


@pytest.mark.parametrize("picture", ["<svg onload=x>", base64.b64encode(b"GIF89a").decode(), 'x" onerror="y'])
@pytest.mark.parametrize("where", ["thumbnail", "query", "hit"])
def test_a_picture_must_be_a_png(make, picture, where):
    hit = Hit("c-00000001", 0.1, picture if where == "hit" else "")
    changes = {
        "thumbnail": {"thumbnails": {"c-00000000": picture}},
        "query": {"retrievals": (Retrieval("i2t", "c-00000000", (), (), picture),)},
        "hit": {"retrievals": (Retrieval("t2i", "c-00000000", (hit,), ()),)},
    }
    with pytest.raises(InputError, match="base64 PNG"):
        make(**changes[where])


@pytest.mark.parametrize("field", ["names", "thumbnails", "retrievals"])
def test_one_personal_set_keeps_names_and_pictures_out(make, field):
    # Catches a check of the forget set alone: the holdout's pictures are as personal.
    record = make()
    sets = tuple(dataclasses.replace(ref, personal=ref.role == "holdout") for ref in record.plan.sets)
    bare = {"names": {}, "thumbnails": {}, "retrievals": ()}
    del bare[field]

    with pytest.raises(InputError, match="personal") as refusal:
        make(plan=dataclasses.replace(record.plan, sets=sets), **bare)

    assert "hot beverage" not in str(refusal.value)


def test_personal_retrievals_may_be_told_in_ids(make):
    record = make()
    sets = (SetRef("forget", "data/f", "r", "m.dir", "a" * 64, 40, True),)
    ids_only = (Retrieval("i2t", "c-00000000", (Hit("c-00000000", 0.3),), (Hit("c-00000001", 0.3),)),)

    told = make(
        plan=dataclasses.replace(record.plan, sets=sets), names={}, thumbnails={}, retrievals=ids_only
    )

    assert told.personal
    assert told.name("c-00000000") == "c-00000000"
