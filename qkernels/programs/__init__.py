"""Lane programs: every search and every packing, written once and run by all engines."""
