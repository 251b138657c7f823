"""Follow one thread through a kernel's machine code (SASS) and count what it executes.

Loop counters are computed as the machine would; everything else is unknown. An unknown branch past a call takes it
(the call is the slow path of a division or root, which ordinary numbers do not need); an unknown loop, a walk along
a list of neighbours, is gone through as often as the caller says.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

_LABEL = re.compile(r"^(\.L_x_\d+|\$?\S+):")
_LINE = re.compile(r"^\s+/\*([0-9a-f]+)\*/\s+(?:@(!?)(U?P\d+|U?PT)\s+)?(\S+)\s*(.*?)\s*;")
_WIDE = re.compile(r"\.64(\.|$)|WIDE")
_MASK = (1 << 32) - 1
_LIMIT = 50_000_000


@dataclass(frozen=True)
class Instruction:
    """`guard`: the predicate without which it does nothing, `wanted`: what that must be."""

    opcode: str
    operands: tuple[str, ...]
    guard: str
    wanted: bool


class Thread:
    """Registers and predicates of one thread; None is unknown."""

    def __init__(self, sass: str, trips: float) -> None:
        self._trips = trips
        self._code: list[Instruction] = []
        self._labels: dict[str, int] = {}
        self._values: dict[str, int | None] = {}
        self._truth: dict[str, bool | None] = {}
        self._visits: Counter[int] = Counter()
        self._written: dict[Instruction, list[str]] = {}
        self._parse(sass)

    def _parse(self, sass: str) -> None:
        for line in sass.splitlines():
            found = _LINE.match(line)
            if found:
                _, negated, guard, opcode, rest = found.groups()
                operands = tuple(part.strip() for part in rest.split(",")) if rest else ()
                self._code.append(Instruction(opcode, operands, guard or "PT", not negated))
            elif label := _LABEL.match(line.strip()):
                self._labels[label.group(1)] = len(self._code)

    def run(self) -> Counter[str]:
        """Executed instructions by opcode (without its modifiers)."""
        executed: Counter[str] = Counter()
        at = 0
        for _ in range(_LIMIT):
            instruction = self._code[at]
            executed[instruction.opcode] += 1
            holds = self._predicate(instruction.guard, instruction.wanted)
            name = instruction.opcode.split(".")[0]
            if name == "EXIT":
                if holds:  # not the exits of threads past the end, of which nothing is known
                    return executed
            elif name in ("BRA", "BRX"):
                at = self._branch(at, instruction, holds)
                continue
            elif holds is not False:
                self._execute(name, instruction, holds is None)
            at += 1
        raise RuntimeError("the kernel does not come to an end")

    def _branch(self, at: int, instruction: Instruction, holds: bool | None) -> int:
        # "BRA !P4, `(.L_x_21)`" has a second condition
        conditions = [operand for operand in instruction.operands[:-1] if "P" in operand]
        for condition in conditions:
            second = self._predicate(condition.lstrip("!"), not condition.startswith("!"))
            holds = None if holds is None or second is None else holds and second
        target = self._labels[re.sub(r"[`()]", "", instruction.operands[-1])]
        if holds is not None:
            return target if holds else at + 1
        skipped = self._code[at + 1 : target]
        if any(step.opcode.startswith("CALL") for step in skipped):
            return target
        self._visits[at] += 1
        going_on = self._visits[at] < self._trips
        if not going_on:
            self._visits[at] = 0
        backwards = target <= at
        return target if backwards == going_on else at + 1

    def _predicate(self, name: str, wanted: bool = True) -> bool | None:
        if name in ("PT", "UPT"):
            return wanted
        held = self._truth.get(name)
        return None if held is None else held == wanted

    def _flag(self, operand: str) -> bool | None:
        return self._predicate(operand.lstrip("!"), not operand.startswith("!"))

    def _value(self, operand: str) -> int | None:
        operand = operand.removesuffix(".reuse")
        if operand in ("RZ", "URZ", "SRZ"):
            return 0
        if operand.startswith(("-R", "-UR", "~R", "~UR")):
            inner = self._value(operand[1:])
            if inner is None:
                return None
            return (-inner if operand[0] == "-" else ~inner) & _MASK
        if re.fullmatch(r"U?R\d+", operand):
            return self._values.get(operand)
        try:
            return int(operand, 0) & _MASK
        except ValueError:
            return None

    def _execute(self, name: str, instruction: Instruction, unsure: bool) -> None:
        # under a guard that may or may not have held, what it would have changed is unknown
        compute = None if unsure else _COMPUTE.get(name)
        if compute is None or not compute(self, instruction):
            for register in self._targets(instruction):
                self._values[register] = None
            for operand in instruction.operands[:2]:
                self._truth.pop(operand, None)

    def _targets(self, instruction: Instruction) -> list[str]:
        """The registers that an instruction writes."""
        known = self._written.get(instruction)
        if known is None:
            wide = 4 if ".128" in instruction.opcode else 2 if _WIDE.search(instruction.opcode) else 1
            first = instruction.operands[0] if instruction.operands else ""
            found = re.fullmatch(r"(U?R)(\d+)", first)
            known = [f"{found.group(1)}{int(found.group(2)) + k}" for k in range(wide)] if found else []
            self._written[instruction] = known
        return known

    def _move(self, instruction: Instruction) -> bool:
        self._values[instruction.operands[0]] = self._value(instruction.operands[-1])
        return True

    def _clear(self, instruction: Instruction) -> bool:
        if instruction.operands[1] != "SRZ":
            return False
        letters, number = re.fullmatch(r"(U?R)(\d+)", instruction.operands[0]).groups()  # type: ignore[union-attr]
        self._values[f"{letters}{number}"] = self._values[f"{letters}{int(number) + 1}"] = 0
        return True

    def _multiply(self, instruction: Instruction) -> bool:
        """IMAD in the forms that only move, add or carry."""
        form = instruction.opcode.split(".")[1:]
        if form[:1] == ["MOV"]:
            return self._move(instruction)
        if form[:1] not in (["IADD"], ["X"], ["SHL"]):
            return False
        target, a, b, c, *carried = instruction.operands
        x, y = self._value(a), self._value(b)
        if 0 not in (x, y) and (x is None or y is None):
            return False
        product = 0 if x is None or y is None else x * y & _MASK
        return self._sum(target, [str(product), c], carried if form[0] == "X" else [])

    def _add(self, instruction: Instruction) -> bool:
        """IADD3 dst, [carry out, …] a, b, c, [carry in, carry in]."""
        target, *rest = instruction.operands
        out = [operand for operand in rest[:2] if re.fullmatch(r"U?P\d+|U?PT", operand)]
        numbers = rest[len(out) : len(out) + 3]
        carried = rest[len(out) + 3 :] if ".X" in instruction.opcode else []
        return self._sum(target, numbers, carried, out)

    def _sum(
        self,
        target: str,
        numbers: list[str] | tuple[str, ...],
        carried: list[str] | tuple[str, ...] = (),
        out: list[str] | None = None,
    ) -> bool:
        values = [self._value(number) for number in numbers]
        flags = [self._flag(operand) for operand in carried]
        known = None not in values and None not in flags
        total = sum(v or 0 for v in values) + sum(f or False for f in flags)
        # one's complement: in the upper half of a 64-bit difference ~x stands for -x, the carry brings the 1
        self._values[target] = total & _MASK if known else None
        for operand in out or ():
            self._truth[operand] = bool(total >> 32) if known else None
        return True

    def _shift(self, instruction: Instruction) -> bool:
        """SHF.L low, n, high: the low word shifted left. SHF.R….HI low, n, high: the high word shifted right."""
        target, low, count, high = instruction.operands
        left = ".L." in instruction.opcode
        value, n = self._value(low if left else high), self._value(count)
        if value is None or n is None or (".HI" in instruction.opcode and left):
            return False
        if not left and ".S32" in instruction.opcode and value >> 31:
            value -= 1 << 32
        self._values[target] = (value << n if left else value >> n) & _MASK
        return True

    def _logic(self, instruction: Instruction) -> bool:
        """LOP3.LUT [P,] target, a, b, c, table of the eight results of three bits, !PT."""
        flag = instruction.operands[0] if instruction.operands[0].lstrip("U").startswith("P") else ""
        target, a, b, c, lut = instruction.operands[1:6] if flag else instruction.operands[:5]
        words, table = [self._value(a), self._value(b), self._value(c)], int(lut, 0)
        if None in words:
            return False
        result = 0
        for case in range(8):
            if table >> case & 1:
                chosen = _MASK
                for word, bit in zip(words, (4, 2, 1), strict=True):
                    chosen &= (word or 0) if case & bit else ~(word or 0) & _MASK
                result |= chosen
        self._values[target] = result
        if flag:
            self._truth[flag] = result != 0
        return True

    def _predicates(self, instruction: Instruction) -> bool:
        """PLOP3.LUT P, PT, a, b, c, table of the eight results of three predicates, 0."""
        target, _, a, b, c, lut, *_ = instruction.operands
        flags = [self._flag(a), self._flag(b), self._flag(c)]
        if None in flags:
            return False
        case = sum(bit for flag, bit in zip(flags, (4, 2, 1), strict=True) if flag)
        self._truth[target] = bool(int(lut, 0) >> case & 1)
        return True

    def _compare(self, instruction: Instruction) -> bool:
        """ISETP.op[.U32].AND[.EX] P, PT, a, b, condition [, lower half's result]."""
        target, _, a, b, condition, *lower = instruction.operands
        parts = instruction.opcode.split(".")
        x, y, also = self._value(a), self._value(b), self._flag(condition)
        if x is None or y is None or also is None or "AND" not in parts:
            self._truth[target] = None
            return True
        if "U32" not in parts:
            x, y = (v - (1 << 32) if v >> 31 else v for v in (x, y))
        result = _RELATIONS[parts[1]](x, y)
        if "EX" in parts and x == y:
            below = self._flag(lower[0]) if lower else None
            if below is None:
                self._truth[target] = None
                return True
            result = below
        self._truth[target] = result and also
        return True


_RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "EQ": lambda a, b: a == b,
    "NE": lambda a, b: a != b,
    "LT": lambda a, b: a < b,
    "LE": lambda a, b: a <= b,
    "GT": lambda a, b: a > b,
    "GE": lambda a, b: a >= b,
}
_COMPUTE: dict[str, Callable[[Thread, Instruction], bool]] = {
    "MOV": Thread._move,
    "UMOV": Thread._move,
    "CS2R": Thread._clear,
    "IMAD": Thread._multiply,
    "IADD3": Thread._add,
    "UIADD3": Thread._add,
    "VIADD": Thread._add,
    "SHF": Thread._shift,
    "USHF": Thread._shift,
    "LOP3": Thread._logic,
    "ULOP3": Thread._logic,
    "PLOP3": Thread._predicates,
    "UPLOP3": Thread._predicates,
    "ISETP": Thread._compare,
    "UISETP": Thread._compare,
}
