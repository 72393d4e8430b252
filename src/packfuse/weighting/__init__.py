"""Weights: a prompt is read and scored by every member, and weights are fitted to the scores.

Other rooms import `prefill` and its parts from `packfuse.weighting.prefill`, the prefix cache from
`packfuse.weighting.prefix_cache`, and the weightings from `packfuse.weighting.methods`. This room
may use `fusion`, `alignment`, `models`, `text` and the root modules below them.
"""
