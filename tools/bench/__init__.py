"""Benchmarks: each module ``tools/bench/NAME.py`` has ``run(quick: bool, **params) -> Result``; ``harness`` measures and prints."""
