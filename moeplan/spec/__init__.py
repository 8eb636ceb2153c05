"""Frozen, SI-unit descriptions of everything a plan depends on. No file, unit string or default lives here."""
