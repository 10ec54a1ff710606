"""The paper in pure torch, one file a method. Nothing here knows timm, data or a training loop.

`registry.py` and `parts.py` are read without torch; so this file imports nothing.
"""
