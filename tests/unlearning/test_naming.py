"""Names in answers: whole words, the longest name wins."""

import pytest

from contracts.errors import InputError
from unlearning.naming import Names, with_article, words

KNOWN = Names(["apple", "red apple", "pineapple", "bird", "bird nest", "pool 8 ball", "o'clock"])


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("a pineapple", [2]),  # no apple in it
        ("It is a Red  APPLE.", [1]),  # and not the apple
        ("a green apple", [0]),
        ("red apples", []),
        ("a bird in a bird nest", [3, 4]),
        ("an apple, an apple", [0, 0]),
        ("red red apple", [1]),
        ("pool 8 ball!", [5]),
        ("six o'clock", [6]),
        ("", []),
    ],
)
def test_names_are_whole_words_and_the_longest_wins(answer: str, found: list[int]) -> None:
    assert KNOWN.found(answer) == found


def test_a_rate_counts_answers_that_contain_their_own_name() -> None:
    assert KNOWN.ranks(["an apple", "a red apple", "a bird nest"], [0, 0, 4]) == [1, 2, 1]
    assert KNOWN.rate(["an apple", "a red apple", "a bird nest", "no"], [0, 0, 4, 3]) == 0.5
    with pytest.raises(InputError, match="at least one answer"):
        KNOWN.rate([], [])


@pytest.mark.parametrize(("names", "message"), [(["a", "--"], "name 1"), (["Ant", "ant!"], "same")])
def test_names_that_cannot_be_told_apart_are_refused(names: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Names(names)


def test_words_and_articles() -> None:
    assert words("Crème-brûlée, №5_x") == ("crème", "brûlée", "5", "x")
    named = ["an apple", "a bird", "an Apple", "a Bird"]
    assert [with_article(name) for name in ("apple", "bird", "Apple", "Bird")] == named
