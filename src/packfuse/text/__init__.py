"""Text and tokens: tokenizers read as bytes, prompts and chat templates, token ids as text.

Other rooms may import every public name of its modules. It may use the root modules only.
"""
