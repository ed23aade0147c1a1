"""Sandboxes: what a program may see, use and do, as data."""
