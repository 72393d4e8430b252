"""Fusion rules: how the members' next-token distributions become one.

Other rooms may import the interface `Rule` (base) and the functions of `pools`; the rules
themselves, one file each, are found by name by `packfuse.registry`. It may use
`packfuse.alignment.lexicon`, errors and registry.
"""
