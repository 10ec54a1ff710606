"""The command line: flags, help and refusals.

No module here may import torch, timm or what needs them at its top: `--help` and a refused argument take half a second,
torch alone takes several. A command first checks its arguments, then imports what it is going to run.
"""
