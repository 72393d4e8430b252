"""How processors compute a member: kernels, LM heads, threads and memory.

Modules of `models` and of the rooms above may import from here.
"""
