"""Importance matrices: collect them (collect), keep them (store, merge), look at them (statistics)."""
