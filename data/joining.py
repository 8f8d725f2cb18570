"""Several sets of one role as one."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from contracts.errors import InputError
from data.layout import SetSummary, read_items, read_summary
from data.shards import ShardReader
from data.writing import NewItem, write_set


def join_sets(folders: Sequence[Path], destination: Path) -> SetSummary:
    """Write a set of all items of several sets, each item once; see `data.writing.write_set`.

    Raises:
        InputError: the destination is in use, or the sets' roles differ.
        SetError, DigestMismatch: a set is malformed, or an image is not the promised one.
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
    seen: set[str] = set()
    for folder in folders:
        items = read_items(folder)
        new = items[~items["id"].isin(seen)]
        stored = zip(new["shard"], new["member"], new["sha256"], new["id"], strict=True)
        told = zip(new["caption"], new["object"], new["style"], new["view"], new["source"], strict=True)
        with ShardReader(folder) as shards:
            for where, (caption, concept, style, view, source) in zip(stored, told, strict=True):
                yield NewItem(shards.read(*where), caption, concept, style, (int(view),), source)
        seen |= set(new["id"])
