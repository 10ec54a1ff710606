"""The paper's method and its baselines in pure torch, one file per method. It knows no timm, data or training loop.

This file imports nothing, because `registry.py` and `parts.py` must be importable without torch.
"""
