"""What `benchmarks/speed.py` measures, one part a file; `evidence/`: parts of `evidence.py`."""
