"""Benchmarks: a module ``tools/bench/NAME.py`` has ``run(quick, **params) -> Result``."""
