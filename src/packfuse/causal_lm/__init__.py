"""The pack as a transformers causal language model, with drafts, constraints and stop conditions.

Other rooms import `FusedForCausalLM` from `packfuse.causal_lm.model`, `FusedCache` from
`packfuse.causal_lm.cache`, `CallSettings` from `packfuse.causal_lm.call`, logits processors and
stopping criteria from their modules, and draft methods from `packfuse.causal_lm.drafts`. This room
may use `weighting`, `fusion` and the rooms below them.
"""
