"""The command line: flags, help and refusals.

No module here may import torch, timm or anything that needs them at module level: `--help` and a refused argument take
half a second, importing torch alone takes several. A command first checks its arguments, then imports what it runs.
"""
