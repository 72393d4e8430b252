"""Alignments: how a member's distribution is carried into the reference's vocabulary.

Other rooms may import `Alignment` and `Pairing` (base), `Lexicon`, the filter of `straddle`, and
the alignments `Bytes`, `Mined` and `Prefix`, which `packfuse.registry` finds by name. It may use
models, text and the root modules.
"""
