"""Machine code: LLVM modules made into object files, kept between runs, loaded and called.

An object file is kept under a hash of everything it is made of, with a checksum, and written in one step; so an entry
is right or absent, and processes that race write the same thing. A process that finds its entries loads them: it
hashes the sources, but neither builds nor compiles anything.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llvmlite
import llvmlite.binding as llvm

from quantmill.qkernels.cache import cache_dir, write_atomically

_HERE = Path(__file__).resolve().parent
# What every function is made of besides its own sources.
_MACHINERY = sorted(_HERE.glob("cpu*.py")) + [
    _HERE / name for name in ("loader.py", "native.py", "program.py", "simd.py")
]

# Bytes of the elements of an array of lanes, by what `Encoder.scratch` calls them.
ELEMENT_BYTES = {"f32": 4, "i32": 4, "u8": 1}
# Where vectors are read and written without splitting a cache line; arrays of lanes begin at multiples of it.
ALIGNMENT = 64


@dataclass(frozen=True)
class Processor:
    """A processor that code is made for: LLVM's name of it, its extensions, and how many floats it has to a vector
    register. Handed from call to call, so that code for another one can be made beside it."""

    name: str
    features: str
    register: int

    @property
    def width(self) -> int:
        """Lanes of a value. Two registers a value hide the latency of sequential sums where there are enough."""
        return 32 if self.register == 16 else 16

    @property
    def lookup(self) -> int:
        """How many floats a vector of indices can select from; where it is none, values are computed again."""
        return self.register if self.register in (8, 16) else 0


@functools.cache
def host() -> Processor:
    """This processor."""
    features = llvm.get_host_cpu_features()
    register = 16 if features.get("avx512f") else 8 if features.get("avx2") else 4
    return Processor(llvm.get_host_cpu_name(), features.flatten(), register)


def _machine(processor: Processor) -> llvm.TargetMachine:
    """A new one for each use: an engine takes its own with it when it goes."""
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple())
    # Code that stays in this process: x86 addresses its constants directly.
    relocation = "static" if target.name.startswith("x86") else "default"
    return target.create_target_machine(
        cpu=processor.name,
        features=processor.features,
        opt=3,
        reloc=relocation,
        codemodel="jitdefault",
        jit=True,
    )


def optimized(text: str, machine: llvm.TargetMachine) -> llvm.ModuleRef:
    """LLVM IR as that machine's code will be made from it."""
    module = llvm.parse_assembly(text)
    module.triple, module.data_layout = machine.triple, str(machine.target_data)
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    # The lanes are the vectors; looking for others costs time and finds nothing.
    options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = False
    passes = llvm.create_pass_builder(machine, options)
    passes.getModulePassManager().run(module, passes)
    return module


def compile_module(text: str, processor: Processor) -> bytes:
    """LLVM IR → an object file for a processor of this machine's kind."""
    machine = _machine(processor)
    return machine.emit_object(optimized(text, machine))


def fingerprint(text: str, files: Iterable[Path], processor: Processor) -> str:
    """Changes with the text, the files, the machinery, the versions and the processor."""
    digest = hashlib.sha256()
    for fact in (text, llvmlite.__version__, processor.name, processor.features):
        digest.update(fact.encode() + b"\0")
    for file in [*_MACHINERY, *files]:
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:32]


def kept(name: str, key: str, make: Callable[[], bytes]) -> bytes:
    """The object file of `name` and `key`, made when it is missing or damaged, and kept where that is possible."""
    path = cache_dir("cpu") / f"{name}-{key}.o"
    try:
        stored = path.read_bytes()
    except OSError:
        stored = b""
    checksum, code = stored[:32], stored[32:]
    if checksum == hashlib.sha256(code).digest():
        return code
    code = make()
    # A read-only home or a full disk: this process has its code all the same.
    with contextlib.suppress(OSError):
        write_atomically(path, hashlib.sha256(code).digest() + code)
    return code


def functions(
    name: str, text_of: Callable[[], str], shapes: Mapping[str, tuple[int, int]], processor: Processor
) -> dict[str, Callable[..., int]]:
    """What the module of `text_of` has for this machine, each i32 of `shapes`: so many addresses, so many i64."""
    code = kept(name, fingerprint(name, (), processor), lambda: compile_module(text_of(), processor))
    return {
        symbol: load(code, symbol, [*[ctypes.c_void_p] * arrays, *[ctypes.c_int64] * numbers], processor)
        for symbol, (arrays, numbers) in shapes.items()
    }


def load(code: bytes, symbol: str, parameters: Sequence[Any], processor: Processor) -> Callable[..., int]:
    """A function of an object file: i32 from ctypes' `parameters`. Other threads run while it does."""
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine(processor))
    engine.add_object_file(llvm.object_file.ObjectFileRef.from_data(code))
    engine.finalize_object()
    address = engine.get_function_address(symbol)
    function = ctypes.CFUNCTYPE(ctypes.c_int32, *parameters)(address)
    # The code lives as long as its engine.
    function.engine, function.address = engine, address  # type: ignore[attr-defined]
    return function


def address_of(function: Callable[..., int]) -> int:
    """Where the code of a loaded function begins."""
    address: int = function.address  # type: ignore[attr-defined]
    return address
