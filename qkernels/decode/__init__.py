"""Lane programs that read blocks: one for each type, run by all engines."""
