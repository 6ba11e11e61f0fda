"""Base models, on disk and on the Hub.

Read for DoRA, fused with an adapter, or compared to extract one.
"""
