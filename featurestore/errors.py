"""Every error the project raises on purpose.

    FeatureStoreError
    ├── DefinitionError        definitions that do not hold together; carries every problem found
    ├── ConfigError            featurestore.toml, an environment variable or a flag
    ├── InputError             what the caller handed in: a spine, keys, a file, a date
    ├── NotFoundError          a name the registry does not know
    ├── EvolutionError         an apply that would break those who read
    ├── ContractViolation      rows that break a contract whose view says `reject`
    ├── TooManyBreaches        more rows break a contract than a run, or quarantine, may hold
    ├── SourceError            a source that cannot be read as declared
    ├── ParityError            online and offline differ
    ├── StoreError             a store answered with a fault
    │   ├── StoreUnreachable   nobody answers there
    │   ├── StoreBusy          somebody else holds the file or the lease
    │   └── StoreFull          no space left
    └── ServingError           a request the serving process cannot answer
        ├── AccessError        its caller is not let in
        │   ├── Unauthenticated    it did not show who it is
        │   ├── PermissionDenied   it may not do this
        │   └── IssuerUnreachable  its token cannot be checked now
        └── ModelError         a model gives no answer
            ├── ModelUnavailable   it is not loaded, not ready, or not to be reached
            ├── ModelFailed        it raised, or gave what it does not promise
            └── ModelOutOfMemory   it needs more memory than there is

Facts are attributes; the message is built from them and ends with the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


class FeatureStoreError(Exception):
    """Something the user can act on went wrong."""

    #: Whether trying again later, with nothing changed, may succeed.
    retryable = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing wrong with a definition: where, what, and the way out."""

    what: str
    way_out: str
    path: str = ""
    line: int = 0

    def __str__(self) -> str:
        where = f"{self.path}:{self.line}: " if self.path else ""
        return f"{where}{self.what}; {self.way_out}"


class DefinitionError(FeatureStoreError):
    """Definitions do not hold together. `problems` lists every one found, in file order."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = "1 problem in the definitions:" if count == 1 else f"{count} problems in the definitions:"
        super().__init__("\n".join([head, *(f"  {problem}" for problem in self.problems)]))


class ConfigError(FeatureStoreError):
    """A setting is missing, unknown or of the wrong form."""


class InputError(FeatureStoreError):
    """What the caller handed in cannot be used."""


class NotFoundError(FeatureStoreError):
    """The registry, or a store, does not know this name; `way_out` is said at the end."""

    def __init__(self, kind: str, name: str, known: Iterable[str], way_out: str = "") -> None:
        self.kind, self.name, self.known = kind, name, tuple(sorted(known))
        super().__init__(f"no {kind} named {name!r}{suggest(name, self.known)}{way_out and '; '}{way_out}")


class EvolutionError(FeatureStoreError):
    """Applying would break those who read; the message names each step and its way out."""


class ContractViolation(FeatureStoreError):
    """Rows break the contract of a view whose `on_violation` is `reject`; nothing of the batch was kept."""

    def __init__(self, view: str, counts: dict[str, int], example: str) -> None:
        self.view, self.counts, self.example = view, counts, example
        rules = ", ".join(f"{rule} ({count} rows)" for rule, count in sorted(counts.items()))
        super().__init__(
            f"feature view {view!r} rejects the batch: {rules}; first: {example}; "
            'mend the source, or declare on_violation="quarantine" to set such rows aside'
        )


class TooManyBreaches(FeatureStoreError):
    """More rows break a contract than the view allows in a run, or than quarantine may hold of it."""


class SourceError(FeatureStoreError):
    """A source cannot be read as declared."""


class ParityError(FeatureStoreError):
    """Online and offline differ."""


class StoreError(FeatureStoreError):
    """A store answered with a fault."""


class StoreUnreachable(StoreError):
    """Nobody answers at the store's address."""

    retryable = True


class StoreBusy(StoreError):
    """Somebody else holds the file or the lease; the message says who."""

    retryable = True


class LeaseLost(StoreBusy):
    """Another job took the view over; this one writes no more."""


class StoreFull(StoreError):
    """The store has no space left."""

    retryable = True


class ServingError(FeatureStoreError):
    """A request the serving process cannot answer."""


class AccessError(ServingError):
    """The caller is not let in."""


class Unauthenticated(AccessError):
    """The caller did not show who it is; the message says no more than a stranger may know."""


class PermissionDenied(AccessError):
    """The caller is known and may not do this."""


class IssuerUnreachable(AccessError):
    """The keys to check a token with cannot be had now."""

    retryable = True


class ModelError(ServingError):
    """A model gives no answer."""


class ModelUnavailable(ModelError):
    """The model is not loaded, not ready, or not to be reached; the message says why."""

    retryable = True


class ModelFailed(ModelError):
    """The model raised, or gave what it does not promise."""


class ModelOutOfMemory(ModelError):
    """The model needs more memory than there is."""


def suggest(name: str, known: Sequence[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them."""
    from difflib import get_close_matches  # not at the top: importing featurestore stays cheap

    if not known:
        return "; none is known yet"
    near = get_close_matches(name, known, n=1)
    listed = ", ".join(known[:20]) + (f", ... ({len(known)} in all)" if len(known) > 20 else "")
    return f"; did you mean {near[0]!r}? known: {listed}" if near else f"; known: {listed}"
