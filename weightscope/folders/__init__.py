"""Run folders: what is on disk, who may write it, and how one run is cut into parts."""
