"""Files that are written whole or not at all."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from contracts.whole_files import ABANDONED, PARTIAL, write_private, written_whole


def test_what_was_written_takes_the_place_of_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with written_whole(path) as partial:
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")

    def interrupted() -> None:
        with written_whole(path) as partial:
            partial.write_text("ne")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_never_written_is_an_error_and_leaves_the_old(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(FileNotFoundError), written_whole(path):
        pass
    assert path.read_text() == "old"


def test_two_writers_do_not_write_to_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with written_whole(path) as one, written_whole(path) as other:
        one.write_text("one")
        other.write_text("other")
    assert path.read_text() == "one"  # the last to end
    assert list(tmp_path.iterdir()) == [path]


def test_a_killed_writer_leaves_the_old_and_a_file_that_is_known_by_its_name(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    killed = """
        import os, signal, sys
        from pathlib import Path
        from contracts.whole_files import written_whole
        with written_whole(Path(sys.argv[1])) as partial:
            partial.write_text("ne")
            os.kill(os.getpid(), signal.SIGKILL)
    """
    ended = subprocess.run([sys.executable, "-c", textwrap.dedent(killed), str(path)], check=False)
    assert ended.returncode == -9
    assert path.read_text() == "old"
    (left,) = set(tmp_path.iterdir()) - {path}
    assert left.name.endswith(PARTIAL)

    with written_whole(path) as partial:
        partial.write_text("new")
    assert left.exists(), "its writer might still be at it"
    os.utime(left, (0, time.time() - ABANDONED - 1))
    with written_whole(path.with_name("b.json")) as partial:
        partial.write_text("of another name")
    assert left.exists()
    with written_whole(path) as partial:
        partial.write_text("newer")
    assert {p.name for p in tmp_path.iterdir()} == {"a.json", "b.json"}


def test_a_private_file_is_its_owners_alone_also_where_an_open_one_was(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text("old")
    path.chmod(0o644)
    write_private(path, b"new")
    assert path.read_bytes() == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
