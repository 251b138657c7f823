"""The vocabulary that lane programs are written in, once for each machine."""
