"""The commands of `quantmill`, one module each; cli.py loads them when they are called."""
