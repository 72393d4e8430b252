"""All private or version-dependent names of transformers and torch that packfuse uses.

`packfuse.hf_compat.models` has those of models, KV caches and compilation,
`packfuse.hf_compat.generation` those of `generate`. Every room may import from here; this room uses
`packfuse.errors` and third-party packages only.
"""
