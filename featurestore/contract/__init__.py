"""The contract of a view as documents that other tools read."""
