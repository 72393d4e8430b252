"""The alignments: one file each, found by `packfuse.registry`."""
