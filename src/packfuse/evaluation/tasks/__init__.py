"""The tasks: one file each, found by `packfuse.registry`."""
