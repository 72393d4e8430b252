"""The weightings: one file each, found by `packfuse.registry`."""
