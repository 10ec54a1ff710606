"""What the larger commands do and print, one file each. `cli/` passes checked arguments; torch is imported here."""
