"""The best settings of a merge by a score."""
