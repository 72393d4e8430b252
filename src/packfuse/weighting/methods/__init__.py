"""Weightings: how much weight each member gets on a prompt.

Other rooms may import the interface `Weighting`, `Evidence` and `Weights` (base) and the losses;
the weightings, one file each, are found by name by `packfuse.registry`. It may use errors and
registry.
"""
