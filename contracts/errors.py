"""The tree of exceptions, and the exit code of each.

    SluglineError                 2  something the caller must correct
    |- InputError                 2  a request, option, plan or gate file is wrong
    |- SetError                   2  a forget/retain/search/holdout/control set is unusable
    |- ModelError                 2  weights or configuration are missing, corrupt or of the wrong family
    |- DigestMismatch             2  bytes are not the bytes that were promised
    |- StoreUnreachable           2  registry, DVC remote, ledger or Prefect API does not answer
    |- PromotionConflict          2  the alias moved under us, or somebody else holds the lock
    |- ProcessEnded               2  a process that shared the work was ended, or by an error of its own
    `- EvidenceError              2  a certificate or measurement is missing, incomplete or inconsistent

A failed gate is a *result* (exit 3) and insufficient evidence is a *result* (exit 4): neither
is an exception.  Prefect pickles the exceptions of failed flows, so messages and attributes
carry opaque ids, digests, counts, paths of sets and option values only; never captions, names,
file names of people or tensors.  Raise `from None` where the cause could carry any of them.
"""

EXIT_OK = 0
EXIT_BAD_INPUT = 2
EXIT_GATE_FAILED = 3
EXIT_INSUFFICIENT_EVIDENCE = 4


class SluglineError(Exception):
    """Base of all errors slugline raises on purpose; the message is one clear sentence."""

    exit_code = EXIT_BAD_INPUT


class InputError(SluglineError):
    """A request, option, plan or gate file is wrong; the message holds the offending value."""


class SetError(SluglineError):
    """A set is empty, overlapping, undecodable or of the wrong shape."""


class ModelError(SluglineError):
    """Weights or configuration are missing, corrupt, not finite or of the wrong family."""


class DigestMismatch(SluglineError):
    """Bytes on disk or from a store do not have the digest that was promised."""


class StoreUnreachable(SluglineError):
    """A registry, DVC remote, ledger or Prefect API does not answer."""


class PromotionConflict(SluglineError):
    """The alias is not where the plan expects it, or another promotion holds the lock."""


class ProcessEnded(SluglineError):
    """A process that shared the work was ended, by the machine or by an error that is not one of these."""


class EvidenceError(SluglineError):
    """A certificate or measurement is missing, incomplete or contradicts itself."""
