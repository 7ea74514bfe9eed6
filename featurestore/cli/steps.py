"""How steps of a plan look, to people and to programs; plan, apply and teardown show them alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from featurestore.registry.definitions import Definitions
from featurestore.registry.plan import Step, step_document


def step_lines(steps: Sequence[Step]) -> list[str]:
    """One line a step, and the way out below those that need one."""
    lines = []
    for step in steps:
        lines.append(f"  {step.impact:<10}  {step}")
        if step.way_out:
            lines.append(f"  {'':<10}    {step.way_out}")
    return lines


def step_documents(steps: Sequence[Step], target: Definitions) -> list[dict[str, Any]]:
    """The same for `--json`."""
    return [step_document(step, target) for step in steps]
