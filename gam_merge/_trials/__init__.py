"""The parts of a search: a space, a way through it, scores, a journal."""
