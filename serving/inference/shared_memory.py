"""Regions of POSIX shared memory that callers have made and registered (Triton's extension). Linux only.

A region is looked at anew on each use: its owner may have cut it short, and touching what is gone kills a process.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from featurestore.errors import InputError, NotFoundError

FOLDER = Path("/dev/shm")
REGIONS_MAX = 1024


@dataclass(frozen=True)
class Region:
    """`size` bytes from `offset` of an object, mapped."""

    name: str
    key: str
    offset: int
    size: int
    descriptor: int
    mapped: mmap.mmap

    def view(self, size: int, offset: int, what: str) -> memoryview:
        """A part of the region; InputError where it does not lie in it."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise InputError(
                f"{what} takes bytes {offset} to {offset + size} of shared memory {self.name!r}, which has "
                f"{self.size}; register a larger region"
            )
        begin = self.offset + offset
        if os.fstat(self.descriptor).st_size < begin + size:
            raise InputError(f"shared memory {self.key!r} was cut short by its owner; make and register it anew")
        return memoryview(self.mapped)[begin : begin + size]

    def close(self) -> None:
        """Forget it. Memory that a running request still uses goes when that ends."""
        os.close(self.descriptor)


class Regions:
    """All registered regions, by name."""

    def __init__(self) -> None:
        self._regions: dict[str, Region] = {}

    def register(self, name: str, key: str, offset: int, size: int) -> None:
        """Map a part of the object `key`; InputError says what is wrong with it."""
        if not name:
            raise InputError("the region has no name; give it one")
        if name in self._regions:
            raise InputError(f"shared memory {name!r} is registered already; unregister it first")
        if len(self._regions) >= REGIONS_MAX:
            raise InputError(f"{REGIONS_MAX} regions are registered, which is all there may be; unregister some")
        if not size:
            raise InputError(f"shared memory {name!r} has no bytes; register at least one")
        path = FOLDER / _file_name(key)
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise InputError(
                f"shared memory {key!r} cannot be opened ({error.strerror}); create it on the sidecar's machine first, "
                "so that the sidecar's user may read and write it"
            ) from error
        try:
            there = os.fstat(descriptor).st_size
            if offset + size > there:
                raise InputError(
                    f"shared memory {key!r} has {there} bytes, {name!r} would end at {offset + size}; register less, "
                    "or make it larger"
                )
            mapped = mmap.mmap(descriptor, offset + size)
        except BaseException:
            os.close(descriptor)
            raise
        self._regions[name] = Region(name, key, offset, size, descriptor, mapped)

    def unregister(self, name: str = "") -> None:
        """Forget a region, or all of them; one that is not there is fine, as it is with Triton."""
        for known in [name] if name else list(self._regions):
            if region := self._regions.pop(known, None):
                region.close()

    def get(self, name: str) -> Region:
        """The region; NotFoundError lists those there are."""
        if name not in self._regions:
            raise NotFoundError("shared memory region", name, self._regions, "register it first")
        return self._regions[name]

    def all(self) -> list[Region]:
        """Every region."""
        return list(self._regions.values())


def _file_name(key: str) -> str:
    name = key.removeprefix("/")
    if not name or "/" in name or "\0" in name or name in (".", ".."):
        raise InputError(f"{key!r} is no name of shared memory; give one without further slashes")
    return name
