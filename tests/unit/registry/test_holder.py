"""Who holds a lease, and whether that process has ended."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from featurestore.registry.holder import holder_name, is_gone


def test_holders_of_other_machines_and_plain_names_are_never_taken_for_gone() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    here = holder_name().replace(f"pid {os.getpid()}", f"pid {ended.pid}")
    assert is_gone(here)
    assert not is_gone(re.sub("@[^@]* pid", "@another.machine pid", here))
    assert not is_gone(re.sub("/[0-9a-f]{6} pid", "/000000 pid", here))  # another machine of that name
    assert not is_gone("worker 7")
    assert not is_gone(holder_name())
