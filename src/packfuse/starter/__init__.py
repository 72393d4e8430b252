"""The starter pack."""
