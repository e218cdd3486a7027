"""Where the work runs: one executor per file."""
