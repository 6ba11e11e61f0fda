"""Methods of the catalogue beside the official code of their papers, at matched parameters."""
