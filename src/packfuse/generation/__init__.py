"""One call of a pack, from the request to the answer with its record.

Other rooms import `Runtime` from `packfuse.generation.runtime`, `Request` from
`packfuse.generation.request`, `Runner` from `packfuse.generation.runner`, and the results from
`packfuse.generation.result` and `packfuse.generation.weigh`. This room may use `causal_lm`,
`weighting`, `fusion` and the rooms below them.
"""
