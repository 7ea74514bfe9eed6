"""The rules that a view declares as a whole, as the part of its document that holds them, and back."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from featurestore.clock import MICROSECOND
from featurestore.feature_view import FeatureView
from featurestore.view_rules import Condition, Reference, Volume

Document = dict[str, Any]
_DURATIONS = ("future_tolerance", "largest_gap")


def rules_document(view: FeatureView) -> Document:
    """The rules of a view; what equals its default is left out."""
    document: Document = {}
    if view.conditions:
        document["conditions"] = [
            _present(rule, "name", "sql", "on_violation", "description") for rule in view.conditions
        ]
    if view.references:
        document["references"] = [
            _present(rule, "view", "columns", "on_violation", "description") for rule in view.references
        ]
    if view.unique:
        document["unique"] = True
    for name in _DURATIONS:
        if (duration := getattr(view, name)) is not None:
            document[f"{name}_us"] = duration // MICROSECOND
    if view.volume is not None:
        document["volume"] = {"per_us": view.volume.per // MICROSECOND} | _present(view.volume, "at_least", "at_most")
    if view.max_breach_share is not None:
        document["max_breach_share"] = float(view.max_breach_share)
    return document


def rules_from(document: Document) -> Document:
    """The document of a view with its rules as a FeatureView takes them."""
    arguments = dict(document)
    if "conditions" in document:
        arguments["conditions"] = [Condition(**rule) for rule in document["conditions"]]
    if "references" in document:
        arguments["references"] = [Reference(**rule) for rule in document["references"]]
    for name in _DURATIONS:
        if f"{name}_us" in arguments:
            arguments[name] = timedelta(microseconds=arguments.pop(f"{name}_us"))
    if "volume" in document:
        limits = dict(document["volume"])
        arguments["volume"] = Volume(per=timedelta(microseconds=limits.pop("per_us")), **limits)
    return arguments


def _present(rule: Any, *names: str) -> Document:
    """The attributes that say something; zero does."""
    values = {name: getattr(rule, name) for name in names}
    return {name: value for name, value in values.items() if value not in (None, "", {})}
