"""One member."""
