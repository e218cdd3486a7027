"""Spectrum to named columns, one family per file.

A family module has ``COLUMNS``, ``NEEDS`` (families whose values it reads) and
``evaluate(measured, settings, known)``; ``known`` holds the values of what it needs.
"""
