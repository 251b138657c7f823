"""Prints what the CPU engine's code is elsewhere: `python -m tests.support.assembly_of TRIPLE PROCESSOR TYPE…`.

A JSON object: type and importance → {"fused": fused multiply-adds, "called": other functions, "products": count}.
"""

import json
import re
import sys

import llvmlite.binding as llvm

from bench import other_processor

other_processor.pretend("generic", {})

from quantmill.qkernels import get_type  # noqa: E402
from quantmill.qkernels.encoders import encoders  # noqa: E402
from quantmill.qkernels.lanes import cpu, cpu_driver, native  # noqa: E402

triple, processor, *types = sys.argv[1:]
found = {}
for (name, weighted), encoder in encoders().items():
    if name in types:
        type = get_type(name)
        parts = cpu.parts_of(type, encoder)
        text = cpu_driver.text_of(type, encoder, "F32", parts.layout, parts.kinds)
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
        assembly = machine.emit_assembly(native.optimized(text, machine))
        found[f"{name}{' importance' if weighted else ''}"] = {
            "fused": re.findall(r"\b(?:fn?m(?:add|sub|la|ls)|vfn?m(?:add|sub))\w*", assembly),
            "called": re.findall(r"^\s(?:callq?|blr?)\s+(\S+)", assembly, re.MULTILINE),
            "products": len(re.findall(r"\bv?f?mulp?s?\b", assembly)),
        }
json.dump(found, sys.stdout)
