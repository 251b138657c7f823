"""What makes the code of each kind of products."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import llvmlite.ir as ir

from quantmill.qkernels.lanes import cpu_product_driver, cpu_tile_driver
from quantmill.qkernels.lanes.cpu_product_shape import BFLOAT16X3, INT16
from quantmill.qkernels.lanes.native import Processor
from quantmill.qkernels.lanes.simd import LaneBuilder

_Maker = Callable[[ir.Module, Processor], ir.Function]


@dataclass(frozen=True)
class Makers:
    """enter, pack, multiply: functions of a module, with the same arguments whatever the kind. pack_lanes: code."""

    enter: _Maker
    pack: _Maker
    multiply: _Maker
    pack_lanes: Callable[[LaneBuilder, list[ir.Value], ir.Value, ir.Value, ir.Value, ir.Value], None]


MAKERS = {
    kind: Makers(driver.enter, driver.pack, driver.multiply, driver.pack_lanes)
    for kind, driver in ((INT16, cpu_product_driver), (BFLOAT16X3, cpu_tile_driver))
}


def text_of(kind: str, processor: Processor) -> str:
    """The module of all three functions."""
    module, makers = ir.Module("quantmill"), MAKERS[kind]
    for make in (makers.enter, makers.pack, makers.multiply):
        make(module, processor)
    return str(module)
