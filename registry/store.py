"""Registered models: register once, certify once, pull checked.

A version is an MLflow run with the plain model folder (safetensors, config, MANIFEST.json) under
`model/` and, once written, `evidence/certificate.json`.  No MLflow model flavour is used: nothing is
pickled, and the folder that leaves the registry is byte for byte the one that entered it.
"""

from collections.abc import Mapping
from pathlib import Path

from contracts.canonical import file_sha256
from contracts.errors import DigestMismatch, EvidenceError, InputError, ModelError
from contracts.values import ModelHandle
from evidence.manifest import check_manifest
from evidence.schema import WEIGHTS_NAME
from registry import versions as tag
from registry.catalog import Catalog
from registry.connection import store_errors
from registry.runs import ensure_registered, log_files, log_metrics, open_run
from registry.versions import check_name, check_tags

MODEL_FOLDER = "model"
CERTIFICATE_FILE = "evidence/certificate.json"


class Registry(Catalog):
    """One MLflow store, read and written.  Aliases move in `registry.promotion` only."""

    def register_model(
        self,
        folder: Path,
        name: str,
        *,
        request_id: str,
        plan_sha256: str,
        tags: Mapping[str, str],
        run_tags: Mapping[str, str] | None = None,
        metrics: Mapping[str, float] | None = None,
        artifacts: Mapping[str, Path] | None = None,
    ) -> str:
        """Register a model folder as a new version, always without an alias: a candidate.

        The pair (request, plan) names the version: a second call returns the first one's version and
        stores nothing, also after a crash in between.

        Args:
            folder: the model folder with its MANIFEST.json.
            name: registered model, created when missing.
            request_id: opaque id of the request.
            plan_sha256: digest of the plan that decided the weights.
            tags: further tags of the version (`family` is required); the digests are added here.
            run_tags: further tags of the run.
            metrics: figures of the run.
            artifacts: path inside the run -> local file, for example the profile plot.

        Returns:
            The version, as text.

        Raises:
            ModelError: the folder has no manifest or no weights.
            DigestMismatch: the folder does not match its manifest, or the version that stands for
                this request and plan has other weights.
            InputError: a name or tag value is not allowed, `family` is missing, a file is missing.
            StoreUnreachable: the store failed; calling again continues.
        """
        keys = {tag.REQUEST: request_id, tag.PLAN: plan_sha256}
        version_tags = check_tags({**tags, **keys, **_digests(folder)})
        if tag.FAMILY not in version_tags:
            raise InputError(f"registering model {check_name(name)} needs the tag {tag.FAMILY!r}")
        existing = self.find_version(name, request_id, plan_sha256)
        if existing is not None:
            if existing.tags.get(tag.WEIGHTS) != version_tags[tag.WEIGHTS]:
                raise DigestMismatch(
                    f"version {existing.version} of {name} stands for request {request_id} and the same plan,"
                    " but with other weights"
                )
            return existing.version
        with store_errors(self.uri):
            run_id = open_run(
                self.client, self._artifact_root, {"model": name, **keys}, check_tags(run_tags or {})
            )
            log_metrics(self.client, run_id, metrics or {})
            log_files(self.client, run_id, artifacts or {})
            self.client.log_artifacts(run_id, str(folder), MODEL_FOLDER)
            self.client.set_terminated(run_id)
            ensure_registered(self.client, name)
            # All tags in the same call: no version ever exists without them.
            made = self.client.create_model_version(
                name, f"runs:/{run_id}/{MODEL_FOLDER}", run_id, tags=version_tags
            )
        return str(made.version)

    def attach_certificate(self, name: str, version: str, certificate: Path) -> str:
        """Store a version's certificate and tag the version with its sha256, once and for all.

        Returns:
            The certificate's sha256.

        Raises:
            EvidenceError: the version carries another certificate already.
            InputError: the version is unknown.
            StoreUnreachable: the store failed; calling again continues.
        """
        info = self.describe(name, version)
        sha256 = file_sha256(certificate)
        standing = info.tags.get(tag.CERTIFICATE)
        if standing not in (None, sha256):
            raise EvidenceError(f"version {version} of {name} carries certificate {standing} already")
        if standing is None:
            with store_errors(self.uri):
                # The file first: a tag must never name a certificate that is not there.
                log_files(self.client, info.run_id, {CERTIFICATE_FILE: certificate})
                self.client.set_model_version_tag(name, version, tag.CERTIFICATE, sha256)
        return sha256

    def pull(self, name: str, alias_or_version: str, destination: Path) -> ModelHandle:
        """Copy a version into `destination` and check every byte against manifest and tags.

        Raises:
            InputError: unknown model, alias or version; the message lists the known ones.
            DigestMismatch: the stored bytes are not the registered ones.
            ModelError: the version has no files or lacks the tags slugline sets.
            StoreUnreachable: the store failed.
        """
        info = self.describe(name, alias_or_version)
        missing = [t for t in (tag.FAMILY, tag.WEIGHTS, tag.MANIFEST) if t not in info.tags]
        if missing:
            raise ModelError(
                f"version {info.version} of {name} was not registered by slugline: no tag {missing[0]}"
            )
        folder = self.download(info, MODEL_FOLDER, destination / f"{name}-{info.version}")
        digests = _digests(folder)
        for which in (tag.MANIFEST, tag.WEIGHTS):
            if digests[which] != info.tags[which]:
                raise DigestMismatch(
                    f"version {info.version} of {name}: {which} is {digests[which]},"
                    f" registered was {info.tags[which]}"
                )
        return ModelHandle(
            name=name,
            version=info.version,
            family=info.tags[tag.FAMILY],
            folder=str(folder),
            weights_sha256=digests[tag.WEIGHTS],
            manifest_sha256=digests[tag.MANIFEST],
        )

    def pull_certificate(self, name: str, version: str, destination: Path) -> Path:
        """A copy of a version's certificate, byte for byte the one that was attached.

        Raises:
            EvidenceError: the version carries none, or the stored one was changed.
            InputError: the version is unknown.
            ModelError: the registry lost the file.
            StoreUnreachable: the store failed.
        """
        info = self.describe(name, version)
        attached = info.tags.get(tag.CERTIFICATE)
        if attached is None:
            raise EvidenceError(f"version {info.version} of {name} carries no certificate")
        file = self.download(info, CERTIFICATE_FILE, destination / f"{name}-{info.version}-certificate")
        found = file_sha256(file)
        if found != attached:
            raise EvidenceError(
                f"the certificate of version {info.version} of {name} has sha256 {found},"
                f" attached was {attached}"
            )
        return file

    def set_alias(self, name: str, alias: str, version: str | None) -> None:
        """Point an alias at a version, or remove it; only `registry.promotion` does so, under its lock."""
        with store_errors(self.uri):
            if version is None:
                self.client.delete_registered_model_alias(name, alias)
            else:
                self.client.set_registered_model_alias(name, alias, version)

    @property
    def _artifact_root(self) -> str | None:
        # A server knows where artifacts go; a bare database would put them under the current folder.
        return None if self.uri.startswith("http") else (self.home / "artifacts").absolute().as_uri()


def _digests(folder: Path) -> dict[str, str]:
    """The two digests a version is tagged with, after checking every file against the manifest."""
    manifest = check_manifest(folder)
    if WEIGHTS_NAME not in manifest.files:
        raise ModelError(f"the model folder has no {WEIGHTS_NAME}")
    return {tag.MANIFEST: manifest.sha256, tag.WEIGHTS: manifest.files[WEIGHTS_NAME]}
