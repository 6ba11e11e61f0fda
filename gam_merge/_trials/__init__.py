"""What a search needs: a space, a way through it, scores, a journal."""
