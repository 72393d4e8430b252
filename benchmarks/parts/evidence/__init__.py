"""The parts of `benchmarks/evidence.py`: sets of questions, systems, answers, figures."""
