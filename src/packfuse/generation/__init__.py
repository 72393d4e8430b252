"""A call."""
