"""What differs between engines, as data."""
