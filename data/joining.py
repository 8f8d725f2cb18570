"""Several sets of one role as one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from contracts.errors import InputError, SetError
from data.layout import SetSummary, read_items, read_summary
from data.shards import ShardReader
from data.writing import NewItem, write_set


def join_sets(folders: Sequence[Path], destination: Path) -> SetSummary:
    """Write a set of all items of several sets, each item once; see `data.writing.write_set`.

    Raises:
        InputError: the destination is in use, or the sets' roles differ.
        SetError: a set is malformed, or an item has other labels in another set.
        DigestMismatch: an image is not the promised one.
    """
    summaries = [read_summary(folder) for folder in folders]
    roles = {summary.role for summary in summaries}
    if len(roles) != 1:
        raise InputError(f"only sets of one role can be joined, got {', '.join(sorted(roles)) or 'none'}")
    return write_set(
        destination,
        roles.pop(),
        _items_once(folders),
        personal=any(summary.personal for summary in summaries),
        licence="; ".join(dict.fromkeys(summary.licence for summary in summaries)),
    )


def _items_once(folders: Sequence[Path]) -> Iterator[NewItem]:
    known: dict[str, tuple[str, str]] = {}
    for folder in folders:
        items = read_items(folder)
        stored = zip(items["shard"], items["member"], items["sha256"], items["id"], strict=True)
        told = zip(
            items["caption"], items["object"], items["style"], items["view"], items["source"], strict=True
        )
        with ShardReader(folder) as shards:
            for where, (caption, concept, style, view, source) in zip(stored, told, strict=True):
                item, labels = where[-1], (concept, style)
                if item not in known:
                    known[item] = labels
                    yield NewItem(shards.read(*where), caption, concept, style, (int(view),), source)
                elif known[item] != labels:
                    raise SetError(f"item {item} is labelled otherwise in another of the sets")
