"""One call of a pack, from the request to the answer with its record.

`pack` imports all modules of this room; other rooms import `Runtime`, `Request` and `Runner` from
the modules of these names, and the results from `packfuse.generation.output.result` and
`packfuse.generation.weigh`. This room may use `causal_lm`, `weighting`, `fusion` and the rooms
below them.
"""
