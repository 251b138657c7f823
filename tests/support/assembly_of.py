"""Prints what the CPU engine's code is elsewhere: `python -m tests.support.assembly_of TRIPLE PROCESSOR TYPE…`.

A JSON object: type and importance → {"fused": fused multiply-adds, "called": other functions, "products": count}.
"""

import json
import re
import sys

import llvmlite.binding as llvm

from quantmill.qkernels import get_type
from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes import cpu, cpu_driver, native

# Vectors of four floats and no other instructions than all of its kind have.
PLAIN = native.Processor("generic", "", 4)

llvm.initialize_all_targets()
llvm.initialize_all_asmprinters()
triple, processor, *types = sys.argv[1:]
found = {}
for (name, weighted), encoder in encoders().items():
    if name in types:
        type = get_type(name)
        parts = cpu.parts_of(type, encoder, PLAIN)
        text = cpu_driver.text_of(type, encoder, "F32", parts.layout, parts.kinds, PLAIN)
        machine = llvm.Target.from_triple(triple).create_target_machine(cpu=processor, opt=3)
        assembly = machine.emit_assembly(native.optimized(text, machine))
        found[f"{name}{' importance' if weighted else ''}"] = {
            "fused": re.findall(r"\b(?:fn?m(?:add|sub|la|ls)|vfn?m(?:add|sub))\w*", assembly),
            "called": re.findall(r"^\s(?:callq?|blr?)\s+(\S+)", assembly, re.MULTILINE),
            "products": len(re.findall(r"\bv?f?mulp?s?\b", assembly)),
        }
json.dump(found, sys.stdout)
