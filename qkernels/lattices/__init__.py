"""What a block may hold: for each type its legal codes and scales, and how they become bytes. Needs torch.

    lattice = lattice_of("Q4_K")
    choice = lattice.unpack(blocks)     # blocks u8 [n_rows, row_bytes]
    choice.codes[...] = ...             # any legal codes
    blocks = lattice.pack(choice)

Whoever chooses codes (calibrate/) knows no layout; the layouts know nothing of a search.
"""

from quantmill.qkernels.lattices.grid import GRIDS, GridChoice, GridLattice
from quantmill.qkernels.lattices.scalar import Choice, ScalarLattice
from quantmill.qkernels.lattices.types import LATTICES, lattice_of

__all__ = ["GRIDS", "LATTICES", "Choice", "GridChoice", "GridLattice", "ScalarLattice", "lattice_of"]
