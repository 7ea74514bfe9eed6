"""Offline stores: the history of every view, and the questions asked of it."""
