"""Quantised tensors to matrices, one scheme per file: how it is recognised and how it decodes.

Every scheme has ``find(stored)``, which says from names, dtypes, shapes and configuration which
stored tensors belong together, without torch and without reading weights; and ``grid(encoded,
parts)``, which turns their bytes into codes on a grid. ``schemes`` is the table of all of them.
"""
