"""What the larger commands do and print, one file each. `cli/` gives them checked arguments; here torch is imported."""
