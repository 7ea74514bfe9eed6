"""Contracts as Great Expectations suites: which rule has which form, and the suite judged over a view's history."""
