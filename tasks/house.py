"""House rules: `slugline.yaml` says which sets, gates and method a registered model is treated with."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from contracts.canonical import from_plain
from contracts.errors import InputError
from contracts.values import Axis, Method

REPO_VARIABLE = "SLUGLINE_REPO"
RULES_FILE = "slugline.yaml"


@dataclass(frozen=True)
class Rules:
    """What one axis of one model is treated with; paths are relative to the repository."""

    retain: str
    search: str
    holdout: str
    control: str
    labels: str
    gates: str
    neighbours: str | None = None
    nearest: int = 20
    method: dict[str, Any] = field(default_factory=dict)


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
    if model not in models:
        raise InputError(f"{RULES_FILE} has no rules for model {model!r}; it knows {', '.join(models)}")
    if axis not in models[model]:
        raise InputError(f"{RULES_FILE} has no rules for axis {axis!r} of model {model!r}")
    return from_plain(Rules, models[model][axis])


def method(house: Rules, overrides: dict[str, Any]) -> Method:
    """The method of the house with a request's own options on top.

    Raises:
        InputError: an option is unknown or of the wrong type.
    """
    return from_plain(Method, {**house.method, **overrides})
