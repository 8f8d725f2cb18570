"""Unlearning methods, one file each.

A method is a module here with

    Options                                       frozen dataclass: what only this method can be told
    profile(model, inputs, method, progress)      layer scores, and directions to step along
    edit(model, inputs, method, profile, progress)  search, and change the model in place

and, if it can do with statistics of the whole retain set that were taken before,

    statistics(method, seed)                      which ones (`unlearning.retain_statistics`)

and, if its `profile` shares items out where there are several processes (`unlearning.distributed`),

    SHARES_ITEMS                                  True

and, if it is not for CLIP alone,

    FAMILIES                                      names of the families that it can edit models of

and is named by its file, underscores as dashes: adding one touches no other file.  `profile` leaves
the weights alone; after an exception in `edit` they are the old ones, bit for bit.
"""

import importlib
import pkgutil
from typing import Any, Protocol, cast

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Method
from unlearning import families
from unlearning.families import Editable, Request
from unlearning.request import Outcome, Profile, Progress, check_method
from unlearning.retain_statistics import Wanted


class UnlearningMethod(Protocol):
    """What a module in this package offers."""

    Options: type[Any]

    def profile(self, model: Any, inputs: Any, method: Method, progress: Progress) -> Profile:
        """Everything that depends on the weights as they are, computed once."""

    def edit(self, model: Any, inputs: Any, method: Method, profile: Profile, progress: Progress) -> Outcome:
        """Search the step and take it."""


def names(family: str | None = None) -> tuple[str, ...]:
    """The methods there are, by name; those that edit models of a family, if one is named."""
    found = sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(__path__))
    return tuple(name for name in found if family is None or family in _families(name))


def method_named(name: str) -> UnlearningMethod:
    """The method of that name.

    Raises:
        InputError: there is none; the message lists the known ones.
    """
    if name not in names():
        raise InputError(f"unknown method {name!r}; there are {', '.join(names())}")
    return cast(UnlearningMethod, importlib.import_module(f"{__name__}.{name.replace('-', '_')}"))


def check(method: Method, n_classes: int, family: str = "clip") -> None:
    """Refuse, before any work, a method that is unknown or cannot do what it is told.

    Raises:
        InputError: the method, or one of its options, is unknown or out of its range, or it is for models
            of other families.
    """
    chosen, able = method_named(method.name), _families(method.name)
    if family not in able:
        raise InputError(f"{method.name} edits models of family {', '.join(able)}, this one is of {family}")
    from_plain(chosen.Options, method.options)
    known = families.module(family)
    check_method(method, n_classes, known.TOWERS)
    if method.objective is not None and method.objective not in known.OBJECTIVES:
        choice = f"must be of {', '.join(known.OBJECTIVES)}" if known.OBJECTIVES else "cannot be chosen"
        raise InputError(f"objective of a model of family {family} {choice}, got {method.objective!r}")
    if method.objective is not None and able != families.ANY:
        raise InputError(f"{method.name} has an objective of its own: leave out {method.objective!r}")


def _families(name: str) -> tuple[str, ...]:
    return cast(tuple[str, ...], getattr(method_named(name), "FAMILIES", ("clip",)))


def statistics(method: Method, seed: int) -> Wanted | None:
    """Which statistics of the whole retain set the method takes as `known_retain`; None if it takes none.

    Raises:
        InputError: the method, or one of its options, is unknown or out of its range.
    """
    wanted = getattr(method_named(method.name), "statistics", None)
    return None if wanted is None else cast(Wanted | None, wanted(method, seed))


def shares_items(method: Method) -> bool:
    """Whether the method's profile is done sooner by several processes.

    Raises:
        InputError: the method is unknown.
    """
    return bool(getattr(method_named(method.name), "SHARES_ITEMS", False))


def profile(model: Editable, inputs: Request, method: Method, progress: Progress | None = None) -> Profile:
    """What the method needs to know of the model as it is; the weights stay as they are.

    Raises:
        InputError: see `check`.
        ModelError: a gradient is not finite.
    """
    check(method, len(inputs.class_ids), model.family)
    return method_named(method.name).profile(model, inputs, method, progress or _silent)


def edit(
    model: Editable,
    inputs: Request,
    method: Method,
    profile: Profile,
    progress: Progress | None = None,
) -> Outcome:
    """Search and change the model in place; it must hold the weights that the profile was taken at.

    Raises:
        InputError: see `check`, or the profile is of other concepts.
        ModelError: a concept has no layer that can be stepped, or every step breaks the model.
    """
    check(method, len(inputs.class_ids), model.family)
    return method_named(method.name).edit(model, inputs, method, profile, progress or _silent)


def unlearn(model: Editable, inputs: Request, method: Method, progress: Progress | None = None) -> Outcome:
    """`profile`, then `edit`; after an exception the model holds its old weights, bit for bit."""
    return edit(model, inputs, method, profile(model, inputs, method, progress), progress)


def _silent(what: str, done: int, total: int) -> None:
    """The progress of a caller that did not ask for any."""
