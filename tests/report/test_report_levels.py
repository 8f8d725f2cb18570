"""Figures of families that measure images: yes-or-no questions, and qualities in units of their own."""

import pytest

from contracts.values import Level, Measurements, Rate
from report.metrics import figure, level_rows, meanings, metric_words, parse

NAMES = {"c-0000000a": "rain"}


@pytest.mark.parametrize(
    ("name", "value", "words", "shown"),
    [
        ("forget.restored.after.upper95", 0.34, "restored, of the forgotten concepts", "34.0\u00a0%"),
        ("retain.restored.drop.upper95", 0.035, "restored, of the retained concepts", "3.5 points"),
        ("forget.restored.after.n", 60, "restored, of the forgotten concepts", "60"),
        ("retain.psnr.loss.upper95", -0.123, "PSNR of the retained concepts", "\u22120.12 dB"),
        ("neighbours.worst.psnr.loss.upper95", 0.5, "PSNR of the worst neighbour", "0.50 dB"),
        ("neighbour.c-0000000a.ssim.loss.loss", 0.0125, "SSIM of neighbour rain", "0.013"),
        ("cross.psnr.loss.upper95", 1.0, "PSNR of clean images", "1.00 dB"),
    ],
)
def test_a_figure_is_told_in_words_and_in_its_unit(name: str, value: float, words: str, shown: str) -> None:
    metric = parse(name)
    assert metric is not None
    assert metric.words(NAMES) == words
    assert figure(name, value) == shown
    assert metric_words(name, NAMES).startswith(words)


@pytest.mark.parametrize(
    "name", ["forget.psnr1.after", "forget.restored5.after", "forget.fa", "retain.sharp.loss"]
)
def test_what_is_no_word_of_ours_is_left_as_it_is(name: str) -> None:
    assert parse(name) is None
    assert metric_words(name, NAMES) == name


def test_levels_are_read_by_measure_then_subject_then_loss() -> None:
    def level(loss: float) -> Level:
        return Level(4, 4, 30.0, 30.0 - loss, loss, loss - 1, loss + 1)

    levels = {
        "neighbour.c-0000000b.psnr": level(0.1),
        "neighbour.c-0000000a.psnr": level(0.9),
        "neighbours.worst.psnr": level(0.9),
        "retain.ssim": level(0.0),
        "retain.psnr": level(0.2),
        "forget.psnr": level(4.0),
    }
    found = [
        (row.metric.subject, row.metric.measure, row.metric.concept)
        for row in level_rows(Measurements({}, {}, levels))
    ]
    assert found == [
        ("forget", "psnr", ""),
        ("retain", "psnr", ""),
        ("neighbour", "psnr", "c-0000000a"),
        ("neighbour", "psnr", "c-0000000b"),
        ("retain", "ssim", ""),
    ]


def test_what_a_question_asks_is_told_and_ranks_need_no_telling() -> None:
    some = Rate(10, 10, 1, 0.1, 0.0, 0.4)
    asked = Measurements({"forget.named.after": some, "cross.colour.before": some}, {})
    assert [short for short, _ in meanings(asked)] == ["named", "colour told"]
    assert "contains its name" in meanings(asked)[0][1]
    assert meanings(Measurements({"forget.fa1.after": some, "retain.t2i5.after": some}, {})) == []
