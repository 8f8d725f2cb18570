"""The journal keeps one open move per model and tells the newest entry."""

import pytest

from contracts.errors import PromotionConflict
from intake.journal import JournalEntry, PromotionJournal
from intake.ledger import Ledger


def _begin(journal: PromotionJournal, model: str = "clip") -> JournalEntry:
    return journal.begin(
        model=model,
        kind="promote",
        request_id="req-0123456789abcdef",
        from_version="1",
        previous_version=None,
        to_version="2",
    )


def test_an_intent_is_open_until_it_is_closed(ledger: Ledger) -> None:
    journal = PromotionJournal(ledger.engine)
    assert journal.unfinished("clip") is None

    entry = _begin(journal)
    assert journal.unfinished("clip") == entry
    assert (entry.step, entry.from_version, entry.previous_version, entry.to_version) == (
        "intended",
        "1",
        None,
        "2",
    )

    journal.advance(entry.id, "champion moved")
    still_open = PromotionJournal(ledger.engine).unfinished("clip")
    assert still_open is not None
    assert still_open.step == "champion moved"

    journal.advance(entry.id, "done")
    assert journal.unfinished("clip") is None


@pytest.mark.parametrize("closed", ["done", "undone", "superseded"])
def test_a_model_has_one_open_move_at_a_time(ledger: Ledger, closed: str) -> None:
    journal = PromotionJournal(ledger.engine)
    entry = _begin(journal)

    with pytest.raises(PromotionConflict, match="still open"):
        _begin(journal)
    _begin(journal, model="other")

    journal.advance(entry.id, closed)
    assert _begin(journal).id > entry.id
