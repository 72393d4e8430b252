"""One member: load a model, and read tokens with it.

A `Member` is a causal language model that advances sessions and returns log-probabilities;
`HFMember` is one from transformers, `StaticMember`, `Compiled` and `int8_copy` are variants of it;
`llama_cpp` has members that llama.cpp runs, `remote` those in servers. Other rooms may import every
public name of the modules of this folder, but nothing from `models.kv`, which is private to it.
This room may use `text` and, of the root modules, `settings`, `errors`, `transfer`, `hf_compat`.
"""
