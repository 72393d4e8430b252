"""KV caches: keys and values of several sequences in shared tensors, and forward passes over them.

Here and in all of `models`, a row is one sequence of a batch, and a slot is one index of a KV
store's time axis. Only the modules of `models` may import from here: `RowCache` and `new_cache`
(`store`), the forward passes `RaggedBatch`, `FixedShapeBatch` and `StaticStep`, and what decides
between them. This folder may use `hf_compat` and `transfer`, and no other room.
"""
