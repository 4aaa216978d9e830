"""The log of a registry: who did what with which version, and when.

Every change is one object, `log/00000001.json`, written only if its number is free: of two people
who change the registry at the same moment one is refused, and the log is never rewritten. What is
in production follows from the log alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Final, Literal, get_args

from pipelines import storage
from training.errors import RegistryDamaged, VersionNotFound

Action = Literal["add", "reproduce", "promote", "rollback", "retire"]
Stage = Literal["candidate", "production", "retired"]

LOG: Final = "log"
VERSIONS: Final = "versions"
"""Folders below a registry's URI."""
_DIGITS: Final = 8


@dataclass(frozen=True, kw_only=True)
class Change:
    """One entry of the log.

    Attributes:
        number: its place in the log, from 1.
        action: what was done.
        version: to which version; of a rollback, the one that is in production again.
        by: who did it.
        when: ISO 8601, UTC.
        record: of `reproduce`: what was measured.
    """

    number: int
    action: Action
    version: str
    by: str
    when: str
    record: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class History:
    """All changes of a registry, in their order."""

    changes: tuple[Change, ...] = ()

    @property
    def versions(self) -> tuple[str, ...]:
        """Every version that was added, in that order."""
        return tuple(dict.fromkeys(one.version for one in self.changes if one.action == "add"))

    @property
    def in_production(self) -> tuple[str, ...]:
        """Versions that were promoted, the current one last; rolled back and retired ones left out.

        A rollback takes the last away.
        """
        stack: list[str] = []
        for change in self.changes:
            if change.action == "promote":
                stack.append(change.version)
            elif change.action == "rollback" and stack:
                stack.pop()
            elif change.action == "retire":
                stack = [version for version in stack if version != change.version]
        return tuple(stack)

    @property
    def production(self) -> str | None:
        """The version in production."""
        return stack[-1] if (stack := self.in_production) else None

    @property
    def previous(self) -> str | None:
        """What a rollback brings back: the last other version that was in production."""
        others = [version for version in self.in_production if version != self.production]
        return others[-1] if others else None

    def stage(self, version: str) -> Stage:
        """Where a version stands. One that another replaced in production is retired."""
        if version == self.production:
            return "production"
        last = [one.action for one in self.of(version) if one.action != "reproduce"][-1:]
        return "candidate" if last == ["add"] else "retired"

    def withdrawn(self, version: str) -> Change | None:
        """The change that retired a version, unless it was added again since."""
        last = [one for one in self.of(version) if one.action in {"add", "retire"}][-1:]
        return last[0] if last and last[0].action == "retire" else None

    def of(self, version: str) -> tuple[Change, ...]:
        """The changes of one version."""
        return tuple(one for one in self.changes if one.version == version)

    def reproducibility(self, version: str) -> Mapping[str, Any] | None:
        """What the last measurement of a version's reproducibility found; None without one."""
        found = [one.record for one in self.of(version) if one.action == "reproduce"]
        return found[-1] if found else None


class Log:
    """The log below a registry's URI. What was read once is not read again: it never changes."""

    def __init__(self, registry: str) -> None:
        self._folder = storage.join(registry, LOG)
        self._read = History()

    def read(self) -> History:
        """Everything that was written so far.

        Raises:
            RegistryDamaged: an entry is missing or is not one.
            StorageError: the store cannot be read.
        """
        known = self._read.changes  # another thread may exchange it meanwhile
        names = [uri.rpartition("/")[2] for uri in storage.list_uris(self._folder)]
        numbered = [_name(number) for number in range(1, len(names) + 1)]
        if names != numbered or len(names) < len(known):
            raise RegistryDamaged(
                f"the log {self._folder} has {len(names)} entries that are not numbered from 1 "
                "without a gap; restore the missing ones from a copy"
            )
        fresh = tuple(self._entry(number) for number in range(len(known) + 1, len(names) + 1))
        self._read = found = History(changes=known + fresh)
        return found

    def append(
        self, action: Action, by: str, version_of: Callable[[History], str], **record: Any
    ) -> Change:
        """Write one change; if another one came first, look again and decide anew.

        Args:
            action: what is done.
            by: who does it.
            version_of: decides from the history which version it is about, or raises.
            record: kept with it.
        """
        while True:
            history = self.read()
            change = Change(
                number=len(history.changes) + 1,
                action=action,
                version=version_of(history),
                by=by,
                when=datetime.now(UTC).isoformat(timespec="microseconds"),
                record=record,
            )
            uri = storage.join(self._folder, _name(change.number))
            content = json.dumps(asdict(change), indent=1, sort_keys=True, allow_nan=False).encode()
            # Read back: stores without conditional writes may have taken another one's as well.
            if storage.write_once(uri, content) and storage.read_bytes(uri) == content:
                return change

    def _entry(self, number: int) -> Change:
        uri = storage.join(self._folder, _name(number))
        try:
            change = Change(**json.loads(storage.read_bytes(uri)))
        except (ValueError, TypeError):
            change = None
        if change is None or change.number != number or change.action not in get_args(Action):
            raise RegistryDamaged(f"{uri} is not an entry of a log; restore it from a copy")
        return change


def served_folder(uri: str) -> str:
    """Folder of the models that are served: the version that a registry has in production, or the
    model set itself where there is no registry. For those who load a part of it without torch.

    Raises:
        VersionNotFound: the registry has none in production.
        RegistryDamaged: its log is not whole.
    """
    history = Log(uri).read()
    if not history.changes:
        return uri
    if history.production is None:
        raise VersionNotFound(f"{uri} has no version in production; promote one")
    return storage.join(uri, VERSIONS, history.production)


def _name(number: int) -> str:
    return f"{number:0{_DIGITS}d}.json"
