"""Listening to a network without an adapter: how its attention is read, and what is kept of it."""
