"""Runs and reports to bytes: one format per file, each escaping names in its own way."""
