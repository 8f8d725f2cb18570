"""Who is compared: every method by itself, and named variants.  To add one, add a line to `VARIANTS`.

Every contender is stopped by the same rule, FA@forget_at = 0 on the search split, and searches with the
same budget.  `forget_at` stands in the table: the methods by themselves stop at the paper's 5 and may edit
both towers; variants that edit the text tower stop at 20, because out of the top 5 on the search hand is
not yet out of the top 5 on unseen ones (`uce`, which leads a name all the way, stops at 5).  So that the
stop decides nothing between methods, the baselines stand in the table with that stop and tower too.  On
the axis of styles everybody stops where the house does: there are eight classes.  Another stop for all of
them can be asked for (`Stop`), and other contenders can be read from a file (`read_table`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from contracts.canonical import digest, from_plain, to_plain
from contracts.errors import InputError
from contracts.values import Axis, Method
from unlearning.methods import method_named

COMMON: Mapping[str, Any] = {"towers": ["vision", "text"], "forget_at": 5, "micro_batch": 256}
TEXT: Mapping[str, Any] = {"towers": ["text"], "forget_at": 20}
VISION: Mapping[str, Any] = {"towers": ["vision"], "forget_at": 5}

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    # With the step search and the retain batch of the released code; by itself it has the house's.
    "slug published": {"name": "slug", "step_rule": "bisection", "retain_batch": 16},
    "slug text": {"name": "slug", **TEXT},
    "slug vision": {"name": "slug", **VISION},
    "slug-preconditioned text": {"name": "slug-preconditioned", **TEXT},
    "slug-preconditioned vision": {"name": "slug-preconditioned", **VISION},
    "erase-linear text": {"name": "erase-linear", **TEXT},
    "erase-linear vision": {"name": "erase-linear", **VISION, "options": {"shrinkage": 0.5}},
    "per-tower step": {
        "name": "per-tower",
        "options": {"text": {"name": "slug-preconditioned", "forget_at": TEXT["forget_at"]}},
    },
    "uce text": {"name": "uce", "towers": ["text"]},
    "uce vision": {"name": "uce", **VISION},
    "ccup text": {"name": "ccup", **TEXT},
    "razor text": {"name": "razor", **TEXT},
    "ssd text": {"name": "ssd", **TEXT},
    "ascent-finetuning text": {"name": "ascent-finetuning", **TEXT},
    "salun text": {"name": "salun", **TEXT},
}

# What is repeated on models of other training seeds: the paper's method, and what may be the default.
HEADLINES = ("slug", "slug-preconditioned text", "uce text", "erase-linear vision")

# The model retrained without the forget set, where there is one: measured like a contender, edits nothing.
RETRAINED = "retrained"


@dataclass(frozen=True)
class Contender:
    """A method with all of its options, under the name that tables use; no method for `RETRAINED`."""

    label: str
    method: Method | None

    @property
    def resolved(self) -> Method | None:
        """The method as rows name it, see `resolved`.

        Raises:
            InputError: see there.
        """
        return None if self.method is None else resolved(self.method)

    @property
    def sha256(self) -> str:
        """Digest of everything that decides what the method does, so that a changed default is another one.

        Raises:
            InputError: see `resolved`.
        """
        return digest(self.resolved)


def resolved(method: Method) -> Method:
    """The method with every option it has: what it was not told is what its defaults are today.

    Options that name a method themselves, as the parts of `per-tower` do, are resolved by that one.

    Raises:
        InputError: a method, or one of its options, is unknown or out of its range.
    """
    return replace(method, options=_all_options(method.name, method.options))


def _all_options(name: str, told: Mapping[str, Any]) -> dict[str, Any]:
    known: dict[str, Any] = to_plain(from_plain(method_named(name).Options, told))
    return {
        option: {**value, "options": _all_options(value["name"], value["options"])}
        if isinstance(value, Mapping) and {"name", "options"} <= value.keys()
        else value
        for option, value in known.items()
    }


@dataclass(frozen=True)
class Stop:
    """Where everybody's search may end, whatever the table says.

    at: FA@`at` on the search split has to come down; None leaves the contender's own.
    share: to at most that share of each concept's items; None leaves the contender's own.
    """

    at: int | None = None
    share: float | None = None

    def of(self, method: Method) -> Method:
        """The method with this stop, also where a part of it has one of its own."""
        if self.at is not None:
            options = {
                name: {key: told for key, told in value.items() if key != "forget_at"}
                if isinstance(value, Mapping)
                else value
                for name, value in method.options.items()
            }
            method = replace(method, forget_at=self.at, options=options)
        return method if self.share is None else replace(method, forget_target=self.share)


def table(names: Sequence[str]) -> dict[str, Method]:
    """Label -> method for requests about objects: `names` by themselves, then the variants."""
    return _methods({**{name: {"name": name} for name in names}, **VARIANTS})


def read_table(path: Path) -> dict[str, Method]:
    """Label -> method from a YAML file written like `VARIANTS`.

    Raises:
        InputError: it cannot be read, is no mapping of mappings, or a method has no such field.
    """
    import yaml

    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        raise InputError(f"{path} cannot be read as YAML: {type(error).__name__}") from None
    if not (isinstance(told, dict) and all(isinstance(own, dict) for own in told.values())):
        raise InputError(f"{path} must map labels to what is said of a method")
    return _methods(told)


def _methods(told: Mapping[str, Mapping[str, Any]]) -> dict[str, Method]:
    return {label: from_plain(Method, {**COMMON, **overrides}) for label, overrides in told.items()}


def fitting(known: Mapping[str, Method], house: Method) -> dict[str, Method]:
    """The methods with the house's micro-batch: what fits into memory is no part of a comparison."""
    return {label: replace(method, micro_batch=house.micro_batch) for label, method in known.items()}


def contenders(
    known: Mapping[str, Method], picked: Sequence[str], axis: Axis, stops: Mapping[Axis, Stop]
) -> list[Contender]:
    """The picked contenders (all if none is named) as they treat a request on that axis.

    Args:
        known: see `table`.
        picked: labels.
        axis: of the request.
        stops: what everybody gets on an axis.

    Raises:
        InputError: a label is unknown.
    """
    unknown = [label for label in picked if label not in known]
    if unknown:
        raise InputError(f"unknown contender {unknown[0]!r}; there are {', '.join(known)}")
    return [Contender(label, stops[axis].of(known[label])) for label in picked or known]
