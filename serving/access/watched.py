"""Files that an operator changes while we run: read again when their content changes, kept when the new one is bad."""

from __future__ import annotations

import logging
import time
import tomllib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from featurestore.errors import ConfigError

log = logging.getLogger(__name__)

#: How long a change may go unnoticed. A look costs some 20 us: the files are small.
LOOK_S = 1.0
FILE_BYTES_MAX = 1 << 20

Value = TypeVar("Value")


class Watched(Generic[Value]):
    """The value made from the contents of some files. `parse` raises ConfigError; its words must hold no secret.

    Any thread may ask. Contents are compared, not times: a file can change twice within one tick of the clock.
    """

    def __init__(
        self, what: str, paths: Sequence[Path], parse: Callable[[Sequence[bytes]], Value], look_s: float = LOOK_S
    ) -> None:
        self._what, self._paths, self._parse, self._look_s = what, paths, parse, look_s
        self._contents = self._read()
        self._value = parse(self._contents)
        self._looked_at, self._trouble = time.monotonic(), ""

    def current(self) -> Value:
        """The value of the contents now, or of the last good ones; another object after each change."""
        if time.monotonic() - self._looked_at >= self._look_s:
            self._looked_at = time.monotonic()
            self._look()
        return self._value

    def _look(self) -> None:
        try:
            contents = self._read()
            if contents == self._contents:
                self._trouble = ""
                return
            self._value = self._parse(contents)
        except ConfigError as error:
            if str(error) != self._trouble:
                log.warning("%s cannot be used as changed, what was read before still holds: %s", self._what, error)
            self._trouble = str(error)
            return
        self._contents, self._trouble = contents, ""
        log.info("%s changed and was read again", self._what)

    def _read(self) -> list[bytes]:
        return [self._content(path) for path in self._paths]

    def _content(self, path: Path) -> bytes:
        try:
            with path.open("rb") as file:
                content = file.read(FILE_BYTES_MAX + 1)
        except OSError as error:
            raise ConfigError(
                f"{self._what}: {path} cannot be read ({error.strerror}); check that it exists and may be read"
            ) from error
        if len(content) > FILE_BYTES_MAX:
            raise ConfigError(f"{self._what}: {path} has more than {FILE_BYTES_MAX} bytes; is it the right file?")
        return content


def parse_toml(content: bytes, path: str) -> dict[str, Any]:
    """A TOML document; ConfigError says where it breaks off."""
    try:
        return tomllib.loads(content.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        # Not chained: the traceback of a decoder shows what it read.
        place = str(error) if isinstance(error, tomllib.TOMLDecodeError) else "it is not TOML in UTF-8"
        raise ConfigError(f"{path} is not valid TOML: {place}; mend that line") from None


def listed(faults: Iterable[str]) -> str:
    """Faults as one text."""
    return "; ".join(sorted(faults))
