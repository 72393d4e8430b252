"""Ways to draft what the pack then checks in one pass, one a file."""
