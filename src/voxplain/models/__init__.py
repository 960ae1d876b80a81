"""Networks that are ours to carry."""
