"""The ``ramet`` command."""
