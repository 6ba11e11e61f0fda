"""The Hub: what its ids mean, downloads and pushes."""
