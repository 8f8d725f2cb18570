import os
import threading

import pytest

from contracts.errors import InputError
from data.tracking import dvc_root, private_site_cache


@pytest.fixture(autouse=True)
def unset(monkeypatch) -> None:
    monkeypatch.delenv("DVC_SITE_CACHE_DIR", raising=False)


def test_the_repository_is_found_from_below(unused_project, tmp_path) -> None:
    (unused_project / "data").mkdir()
    assert dvc_root(unused_project / "data" / "not-there-yet") == unused_project
    with pytest.raises(InputError, match="not inside a DVC repository"):
        dvc_root(tmp_path)


def test_a_choice_of_the_callers_own_is_kept(unused_project, monkeypatch) -> None:
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", "/somewhere")
    with private_site_cache(unused_project):
        assert os.environ["DVC_SITE_CACHE_DIR"] == "/somewhere"
    assert os.environ["DVC_SITE_CACHE_DIR"] == "/somewhere"


def test_the_environment_is_as_before_also_after_an_error(unused_project) -> None:
    def fail() -> None:
        with private_site_cache(unused_project):
            seen.append(os.environ["DVC_SITE_CACHE_DIR"])
            raise RuntimeError

    seen: list[str] = []
    with pytest.raises(RuntimeError):
        fail()
    assert seen == [str(unused_project / ".dvc" / "tmp" / "site")]
    assert "DVC_SITE_CACHE_DIR" not in os.environ


def test_two_threads_do_not_take_each_others_setting_for_the_callers(tmp_path) -> None:
    """Catches a look at the environment before the lock is held: names would end in /var/tmp/dvc."""
    seen = []

    def open_other() -> None:
        with private_site_cache(tmp_path / "other"):
            seen.append(os.environ["DVC_SITE_CACHE_DIR"])

    other = threading.Thread(target=open_other)
    with private_site_cache(tmp_path / "one"):
        other.start()
        other.join(timeout=0.2)
        assert seen == []
    other.join()
    assert seen == [str(tmp_path / "other" / ".dvc" / "tmp" / "site")]
