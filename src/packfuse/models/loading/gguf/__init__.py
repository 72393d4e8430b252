"""GGUF files: their fields, the tokenizer that they describe, and copies as model folders."""
