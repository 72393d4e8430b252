"""What `benchmarks/speed.py` measures, one part a file."""
