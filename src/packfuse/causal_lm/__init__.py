"""The pack as a transformers causal language model."""
