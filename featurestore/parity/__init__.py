"""Proof that the online store is the projection of history, or what exactly it is not."""
