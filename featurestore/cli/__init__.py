"""The command `featurestore`: a composition root; nothing imports it."""
