"""House rules: `slugline.yaml` says which sets, gates and method a registered model is treated with."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Axis, Method

REPO_VARIABLE = "SLUGLINE_REPO"
RULES_FILE = "slugline.yaml"
Start = Literal["original", "champion"]


@dataclass(frozen=True)
class Rules:
    """What one axis of one model is treated with; paths are relative to the repository.

    `cross` is the holdout of the other axis, so that forgetting a hand at the cost of things, or a
    thing at the cost of hands, is seen.  `family` is that of the registered model.  `edit_from` says where
    requests after the first begin (`tasks.rederive`).
    """

    retain: str
    search: str
    holdout: str
    control: str
    labels: str
    gates: str
    family: str = "clip"
    cross: str | None = None
    neighbours: str | None = None
    nearest: int = 20
    edit_from: Start = "original"
    method: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Options:
    """What a request may override; `method` holds fields of `contracts.values.Method`."""

    method: dict[str, Any] = field(default_factory=dict)
    gates: str | None = None
    seed: int = 0
    edit_from: Start | None = None


@dataclass(frozen=True)
class Choice:
    """What one request is treated with; `gates` is the path of the gate file."""

    method: Method
    gates: str
    seed: int
    edit_from: Start


def repository() -> Path:
    """The folder that holds slugline.yaml: SLUGLINE_REPO, else the current folder or one above it.

    Raises:
        InputError: there is none.
    """
    named = os.environ.get(REPO_VARIABLE)
    start = Path(named).absolute() if named else Path.cwd()
    for folder in (start,) if named else (start, *start.parents):
        if (folder / RULES_FILE).is_file():
            return folder
    raise InputError(
        f"no {RULES_FILE} in {start} or above it; run inside the repository or set {REPO_VARIABLE}"
    )


def rules(repo: Path, model: str, axis: Axis) -> Rules:
    """The rules for one axis of one model.

    Raises:
        InputError: slugline.yaml is not readable, does not know the model or axis, or has an unknown field.
    """
    import yaml

    try:
        text = yaml.safe_load((repo / RULES_FILE).read_text(encoding="utf-8"))
        models = text["models"]
    except (OSError, yaml.YAMLError, TypeError, KeyError):
        raise InputError(f"{RULES_FILE} is not readable, or has no `models`") from None
    if not isinstance(models, dict) or model not in models:
        known = ", ".join(map(str, models or ()))
        raise InputError(f"{RULES_FILE} has no rules for model {model!r}; it knows {known or 'none'}")
    if not isinstance(models[model], dict) or axis not in models[model]:
        raise InputError(f"{RULES_FILE} has no rules for axis {axis!r} of model {model!r}")
    try:
        return from_plain(Rules, models[model][axis])
    except InputError as error:
        raise InputError(f"{RULES_FILE}, model {model!r}, axis {axis!r}: {error}") from None


def choose(house: Rules, options: Mapping[str, Any]) -> Choice:
    """The rules of the house with a request's own options on top.

    What only the house's method can be told goes if the request names another method.

    Raises:
        InputError: an option is unknown or of the wrong type.
    """
    asked = from_plain(Options, options)
    default = dict(house.method)
    if asked.method.get("name", default.get("name")) != default.get("name"):
        default.pop("options", None)
    method = from_plain(Method, {**default, **asked.method})
    return Choice(method, asked.gates or house.gates, asked.seed, asked.edit_from or house.edit_from)
