"""Which names an answer contains: forget accuracy and retained names of a model that answers in words.

Compared are whole words in lower case, so "apple" is not in "pineapple".  Where names stand inside other
names, the longest one wins: "a red apple" names the red apple and not the apple.
"""

import re
from collections.abc import Sequence

from contracts.errors import InputError

# Ranks in the outcome table (`gates.outcomes`): the answer contains the true name, or it does not.
NAMED, NOT_NAMED = 1, 2


def with_article(name: str) -> str:
    """A name as an answer gives it, by its first letter: "an apple", "a bird"."""
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def words(text: str) -> tuple[str, ...]:
    """The words of a text in lower case: runs of letters and digits of any script."""
    return tuple(re.findall(r"[^\W_]+", text.lower()))


class Names:
    """C names, to be found in answers.

    Raises:
        InputError: a name has no word, or two are the same but for case and punctuation.
    """

    def __init__(self, names: Sequence[str]) -> None:
        spelled = [words(name) for name in names]
        if not all(spelled):
            raise InputError(f"name {spelled.index(())} has no word")
        if len(set(spelled)) != len(spelled):
            raise InputError("two names are the same but for case and punctuation")
        self._index = {own: i for i, own in enumerate(spelled)}
        self._lengths = sorted({len(own) for own in spelled}, reverse=True)

    def found(self, text: str) -> list[int]:
        """The names that a text contains, from left to right; a word belongs to one name at most."""
        said, found, at = words(text), [], 0
        while at < len(said):
            name = next(
                (said[at : at + n] for n in self._lengths if said[at : at + n] in self._index),
                None,
            )
            if name is not None:
                found.append(self._index[name])
            at += 1 if name is None else len(name)
        return found

    def ranks(self, answers: Sequence[str], labels: Sequence[int]) -> list[int]:
        """For each answer `NAMED` if it contains the name of its label, else `NOT_NAMED`."""
        return [
            NAMED if label in self.found(answer) else NOT_NAMED
            for answer, label in zip(answers, labels, strict=True)
        ]

    def rate(self, answers: Sequence[str], labels: Sequence[int]) -> float:
        """Share of answers that contain the name of their label; of forgotten names, the forget accuracy.

        Raises:
            InputError: there are no answers.
        """
        if not answers:
            raise InputError("a rate needs at least one answer, got 0")
        return self.ranks(answers, labels).count(NAMED) / len(answers)
