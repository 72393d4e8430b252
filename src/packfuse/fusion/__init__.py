"""Sequences advance, and the members' next-token distributions become one.

Other rooms may import `Engine`, `PackSequence`, `FusionSettings` and the `Fusion` protocol, and the
interfaces and registries of `rules` and `gates`. A sequence holds one `MemberStream` for each
member; a `ReadPlan` batches what they read; `carrying` brings their distributions into the
reference vocabulary, and `pooling` fuses them. This room may use `alignment`, `models`, `text` and
the root modules.
"""
