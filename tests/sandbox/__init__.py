"""Tests of ramet.sandbox."""
