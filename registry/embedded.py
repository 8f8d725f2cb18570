"""The embedded store: one SQLite file and one artifact folder inside the workspace."""

import fcntl
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

from contracts.whole_files import written_whole
from registry.connection import tame_mlflow


def ensure_database(path: Path) -> str:
    """Make the SQLite store if it is not there, whole or not at all; returns its URI.

    MLflow migrates an empty file through some 60 revisions, each with its own fsyncs (1.5 s to 8 s),
    and a process killed meanwhile leaves a store that never opens again.  Here the same migrations
    run in memory (0.8 s), and the finished file is moved in place.
    """
    # as_posix: an absolute path gives the four slashes SQLAlchemy wants.
    uri = f"sqlite:///{path.as_posix()}"
    if path.exists():
        return uri
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # held until the file is closed, by us or by our death
        if not path.exists():
            with written_whole(path) as partial:
                _write_empty_store(partial)
    return uri


def _write_empty_store(path: Path) -> None:
    tame_mlflow()
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    name = f"file:slugline-{uuid.uuid4().hex}?mode=memory&cache=shared"
    # A shared in-memory database lives as long as its last connection: this one.
    with closing(sqlite3.connect(name, uri=True)) as memory, closing(sqlite3.connect(path)) as file:
        engine = create_sqlalchemy_engine(f"sqlite:///{name}&uri=true")  # type: ignore[no-untyped-call]
        try:
            _initialize_tables(engine)  # type: ignore[no-untyped-call]
        finally:
            engine.dispose()
        memory.backup(file)
