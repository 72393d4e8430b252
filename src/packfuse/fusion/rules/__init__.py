"""The rules: one file each, found by `packfuse.registry`."""
