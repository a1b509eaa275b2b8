"""Copies of generations elsewhere: ``files`` (a URL), ``store`` (what lies there), ``copy`` (push and pull), and
``preview`` (what they would copy).
"""
