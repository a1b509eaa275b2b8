"""The compiled part: ``library`` (ctypes over ``native.c``) and ``crew`` (threads that share one batch).

Where it cannot be built, NumPy does the same.
"""
