"""Other people's models, run as they are in an environment of their own; benchmarks start them as processes."""
