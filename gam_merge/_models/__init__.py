"""Base models on disk and on the Hub: read for DoRA, fused with an adapter, told apart by one."""
