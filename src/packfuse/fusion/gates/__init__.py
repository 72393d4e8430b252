"""Where members are fused, one way a file."""
