"""What `tools/docs.py` makes the docs site with."""
