"""The parts of a search: its space, optimiser, score and journal."""
