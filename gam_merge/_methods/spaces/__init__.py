"""Where rules that look at entries look, one a file."""
