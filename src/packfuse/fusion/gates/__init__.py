"""Gates: at which positions the members are fused, and where the reference alone decides.

Other rooms may import the interface `Gate` (base) and the default gate `Every`; the gates, one file
each, are found by name by `packfuse.registry`. It may use errors and registry.
"""
