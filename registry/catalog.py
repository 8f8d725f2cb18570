"""Looking things up in an MLflow store: models, aliases, versions, and their files."""

import shutil
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contracts.errors import InputError, ModelError
from registry import versions as tag
from registry.connection import connect, is_missing, store_errors, tame_mlflow
from registry.embedded import ensure_database
from registry.versions import VersionInfo, check_name, check_tags

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion


class Catalog:
    """One MLflow store, read; connects on first use."""

    def __init__(self, tracking_uri: str | None, home: Path) -> None:
        """Name the store, and switch off MLflow's telemetry and unpickling for this process.

        Args:
            tracking_uri: an MLflow server (http, https) or a database URL; None is the store embedded
                in `home`, a SQLite file that is created when missing.
            home: the workspace; it also holds the artifacts of stores that have no server to do so.
        """
        self.home = home
        self._tracking_uri = tracking_uri
        tame_mlflow()

    @cached_property
    def uri(self) -> str:
        """Where the store is; may hold credentials, so show `registry.connection.public_uri` of it."""
        return self._tracking_uri or ensure_database(self.home / "registry.db")

    @cached_property
    def client(self) -> "MlflowClient":
        """The MLflow client of this store.

        Raises:
            InputError: the URI is of no supported kind.
            StoreUnreachable: the store does not answer.
        """
        return connect(self.uri)

    def models(self) -> tuple[str, ...]:
        """Names of all registered models."""
        with store_errors(self.uri):
            found = _all_pages(lambda token: self.client.search_registered_models(page_token=token))
        return tuple(sorted(m.name for m in found))

    def aliases(self, name: str) -> dict[str, str]:
        """alias -> version of a model.

        Raises:
            InputError: the model is unknown.
        """
        from mlflow.exceptions import MlflowException

        with store_errors(self.uri):
            try:
                found = self.client.get_registered_model(check_name(name)).aliases
            except MlflowException as error:
                if not is_missing(error):
                    raise
                known = ", ".join(self.models()) or "none"
                raise InputError(f"the registry has no model {name!r}; known models: {known}") from None
        # Versions are int on a database and str through a server.
        return {alias: str(version) for alias, version in found.items()}

    def versions(self, name: str) -> tuple[VersionInfo, ...]:
        """All versions of a model, oldest first.

        Raises:
            InputError: the model is unknown.
        """
        return self._search(name, f"name = '{check_name(name)}'", self.aliases(name))

    def find_version(self, name: str, request_id: str, plan_sha256: str) -> VersionInfo | None:
        """The version that this request and plan led to, if it was registered."""
        check_tags({tag.REQUEST: request_id, tag.PLAN: plan_sha256})
        query = (
            f"name = '{check_name(name)}' and tags.{tag.REQUEST} = '{request_id}'"
            f" and tags.{tag.PLAN} = '{plan_sha256}'"
        )
        found = self._search(name, query, {})
        return found[0] if found else None

    def describe(self, name: str, alias_or_version: str) -> VersionInfo:
        """One version, by number or alias.

        Raises:
            InputError: unknown model, alias or version; the message lists the known ones.
        """
        from mlflow.exceptions import MlflowException

        aliases = self.aliases(name)
        version = alias_or_version if alias_or_version.isdecimal() else aliases.get(alias_or_version)
        if version is None:
            known = ", ".join(sorted(aliases)) or "none"
            raise InputError(f"model {name} has no alias {alias_or_version!r}; known aliases: {known}")
        with store_errors(self.uri):
            try:
                return _info(self.client.get_model_version(name, version), aliases)
            except MlflowException as error:
                if not is_missing(error):
                    raise
        known = ", ".join(v.version for v in self.versions(name)) or "none"
        raise InputError(f"model {name} has no version {version}; known versions: {known}")

    def download(self, info: VersionInfo, artifact: str, destination: Path) -> Path:
        """A fresh copy of a file or folder of a version's run; what an interrupted try left is removed.

        Raises:
            ModelError: the run does not hold it.
            StoreUnreachable: the store failed.
        """
        from mlflow.exceptions import MlflowException

        if destination.exists():
            shutil.rmtree(destination)
        destination.mkdir(mode=0o700, parents=True)
        with store_errors(self.uri):
            try:
                # Without a destination MLflow hands out the live folder of a local store.
                return Path(self.client.download_artifacts(info.run_id, artifact, str(destination)))
            except MlflowException as error:
                if not is_missing(error):
                    raise
        raise ModelError(f"version {info.version} of {info.model} has no {artifact} in the registry")

    def _search(self, name: str, query: str, aliases: Mapping[str, str]) -> tuple[VersionInfo, ...]:
        with store_errors(self.uri):
            found = _all_pages(lambda token: self.client.search_model_versions(query, page_token=token))
        return tuple(sorted((_info(v, aliases) for v in found), key=lambda info: int(info.version)))


def _info(version: "ModelVersion", aliases: Mapping[str, str]) -> VersionInfo:
    number = str(version.version)
    return VersionInfo(
        model=version.name,
        version=number,
        run_id=version.run_id or "",
        created_ms=version.creation_timestamp,
        tags=dict(version.tags),
        aliases=tuple(sorted(alias for alias, at in aliases.items() if at == number)),
    )


def _all_pages(search: Callable[[str | None], Any]) -> list[Any]:
    found, token = [], None
    while True:
        page = search(token)
        found.extend(page)
        token = page.token
        if not token:
            return found
