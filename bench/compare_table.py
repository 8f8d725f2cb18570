"""The comparison as a markdown page: one table per kind of request, the best values marked."""

from collections.abc import Iterator, Mapping
from typing import Any

from bench.contenders import RETRAINED
from bench.seeds import section
from bench.summary import COLUMNS, DECIDED, ERASES, VERDICTS, Summary, beaten, best, shown

TITLES = {"single": "Single concepts", "family": "Families", "style": "Styles"}


def page(result: Mapping[str, Any]) -> str:
    """The whole page, of what `bench.compare` prints as JSON."""
    lines = [*_head(result)]
    for kind, found in result["kinds"].items():
        lines += ["", f"## {TITLES[kind]}", "", _setting(kind, found, result), ""]
        lines += [*_table(found["contenders"], result["house"].get(kind))]
        lines += ["", *_honesty(found["contenders"], result["house"].get(kind))]
        if kind in result["seeds"]:
            lines += ["", *section(result["seeds"][kind], result["models"])]
        if RETRAINED in found["contenders"]:
            lines += ["", f"`{RETRAINED}`: the model trained without the forget set, the reference for all."]
            lines += ["A `union` was trained without other requests' concepts too; they are left out here."]
        lines += _errors(found["contenders"])
    return "\n".join(lines) + "\n"


def _head(result: Mapping[str, Any]) -> Iterator[str]:
    about, machine = result["provenance"], result["provenance"]["machine"]
    yield "# Unlearning methods compared"
    yield ""
    yield f"    {about['command']}"
    yield ""
    versions = ", ".join(f"{name} {value}" for name, value in about["versions"].items())
    yield (
        f"{machine['cpu']}, {machine['cores']} cores, {result['asked']['threads']} thread(s) used; rows "
        f"measured at commit {', '.join(result['commits'])} (+: with uncommitted changes); {versions}."
    )
    yield ""
    low, high = result["family_sizes"]
    drawn = "; ".join(_drawn(kind, **count) for kind, count in result["requests"].items())
    seed = result["asked"]["seed"]
    yield f"Requests drawn by seed {seed}: {drawn}. Families have {low} to {high} concepts."
    yield f"Rows: {result['rows']} of {result['wanted']}."
    if result["rows"] < result["wanted"]:
        yield "**The run is not finished: run the same command again to continue it.**"
    yield ""
    yield (
        "Median over requests unless said; rates on held-out drawings, but for styles by hands that no "
        "model was trained on; TA losses in points, paired on the same items, of all known concepts that are "
        "not asked for: the retain set shows every one of them, so no column is about concepts it leaves "
        "out. passed/failed/undecided: verdicts of the gates. `stop`: the search split's FA@k that had to "
        "reach 0, or the share beside it; `reached`: of how many requests it did; losses are of all of them, "
        "also where it did not. **Bold**: best among contenders that pass the erasure gates for "
        f"{ERASES:.0%} of the decided requests or more (a method that changes nothing loses nothing), where "
        f"{DECIDED:.0%} of the requests or more are decided. CPU seconds: profile and edit, nothing kept "
        "from earlier requests."
    )


def _drawn(kind: str, asked: int, drawn: int) -> str:
    short = f" (of {asked} asked: no more fit)" if drawn < asked else ""
    return f"{TITLES[kind].lower()} {drawn}{short}"


def _setting(kind: str, found: Summary, result: Mapping[str, Any]) -> str:
    base = found["unedited"]
    parts = [f"{found['requests']} requests on {', '.join(found['models'])}."]
    said = {
        "FA@1": "fa1",
        "FA@5": "fa5",
        "TA@1": "ta1",
        "FA@1 of never-seen controls": "control_fa1",
        "probe finds": "caught",
        "kernel probe finds": "kernel_caught",
        "FA@1 after the same fine-tuning": "relearned",
        "FA@1 in int8": "int8",
    }
    parts.append(
        "Unedited: "
        + ", ".join(f"{title} {100 * base[key]:.1f} %" for title, key in said.items() if key in base)
    )
    plain = {
        "probe AUC": "probe",
        "kernel AUC": "kernel",
        "AUC of 95 % of shuffled labels at most": "probe_chance95",
        "mAP": "map",
        "mAP of a random order": "map_chance",
        "KL to retrained": "kl",
    }
    parts[-1] += "".join(f", {title} {base[key]:.2f}" for title, key in plain.items() if key in base) + "."
    if "relearned" in base:
        told = result["asked"]["settings"]
        parts.append(
            f"Relearned: {told['relearn_steps']} steps on the retain set alone, AdamW at "
            f"{told['relearn_rate']:g}, batch {told['relearn_batch']}."
        )
    return " ".join(parts)


def _table(contenders: Mapping[str, Summary], house: str | None) -> Iterator[str]:
    columns = [name for name in COLUMNS if any(name in own["figures"] for own in contenders.values())]
    winners = {name: best(contenders, name) for name in columns}
    gold = any(own["retrained"] for own in contenders.values())
    heads = ["method", "stop", "n", "reached", "passed/failed/undecided", *(["retrained"] if gold else [])]
    yield f"| {' | '.join([*heads, *(COLUMNS[name].title for name in columns)])} |"
    yield "|" + "---|" * (len(heads) + len(columns))
    for label, own in contenders.items():
        named = f"`{label}`" + (" (house default)" if label == house else "")
        verdicts = "/".join(str(own["verdicts"][verdict]) for verdict in VERDICTS)
        cells = [
            _cell(name, own["figures"].get(name), own["counts"].get(name), own["n"], label in winners[name])
            for name in columns
        ]
        if gold:
            cells.insert(0, ", ".join(f"{used}: {n}" for used, n in own["retrained"].items()) or "–")
        # The retrained model searches nothing, so there is nothing that it could reach.
        reached = f"{own['reached_target']} of {own['n']}" if own["towers"] else "–"
        told = [named, own["stop"], str(own["n"]), reached, verdicts]
        yield f"| {' | '.join([*told, *cells])} |"


def _cell(column: str, value: float | None, count: float | None, n: int, wins: bool) -> str:
    text = shown(column, value) + (f" (n={count:.0f})" if count is not None and count != n else "")
    return f"**{text}**" if wins else text


def _honesty(contenders: Mapping[str, Summary], house: str | None) -> Iterator[str]:
    """Where the house's default is not the best, said in words."""
    if house is None or house not in contenders:
        return
    better = beaten(contenders, house)
    if not better:
        yield f"No contender that erases beats `{house}` in any column."
        return
    yield f"Better than `{house}`, among contenders that erase:"
    yield ""
    own = contenders[house]["figures"]
    for column, labels in better.items():
        others = ", ".join(f"`{x}` {shown(column, contenders[x]['figures'][column])}" for x in labels[:3])
        more = f" and {len(labels) - 3} more" if len(labels) > 3 else ""
        yield f"- {COLUMNS[column].title} ({shown(column, own[column])}): {others}{more}"


def _errors(contenders: Mapping[str, Summary]) -> list[str]:
    told = [
        f"- `{label}`: {count} x {name}"
        for label, own in contenders.items()
        for name, count in own["errors"].items()
    ]
    return ["", "Ended in an error:", "", *told] if told else []
