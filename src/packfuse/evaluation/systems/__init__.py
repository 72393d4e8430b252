"""The systems of an evaluation."""
