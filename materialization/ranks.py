"""The order of views in a run: a view that refers to another one is loaded after it."""

from __future__ import annotations

from collections.abc import Sequence

from featurestore.feature_view import FeatureView


def ranks(views: Sequence[FeatureView]) -> list[list[FeatureView]]:
    """The views in groups, each in its old order and referring to views of earlier groups alone (or to none here)."""
    groups: list[list[FeatureView]] = []
    waiting = list(views)
    while waiting:
        ahead = {view.ref for view in waiting}
        ready = [view for view in waiting if not any(rule.view in ahead for rule in view.references)]
        assert ready, "references that lead back are refused when they are applied"
        groups.append(ready)
        waiting = [view for view in waiting if view not in ready]
    return groups
