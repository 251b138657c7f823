"""Better files at the same size: codes that undo each other's errors, scales trained against the original."""
