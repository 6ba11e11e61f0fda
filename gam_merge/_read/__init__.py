"""Files -> adapters: formats, one file each, and the data that they become."""
