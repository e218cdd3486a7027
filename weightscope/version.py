"""The version, alone in a file so that reading it imports nothing."""

__version__ = "0.1.0"
SCHEMA_VERSION = 2
"""Version of the run folder's layout and of the meaning of its columns."""
