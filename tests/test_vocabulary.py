"""The lane language is declared in one place, machines keep to it, and phases bind their arrays by name."""

import ast
import re
from pathlib import Path

import pytest

from quantmill.qkernels.encoders import encoders
from quantmill.qkernels.lanes import cpu_snap, metal_words, vocabulary
from quantmill.qkernels.lanes import torch as torch_lanes
from quantmill.qkernels.lanes.encoder import Encoder, Phase, constants
from quantmill.qkernels.programs.scale import pack_q6_k, scales_q6_k

MACHINES = {"cpu": cpu_snap.WORDS, "torch": torch_lanes.WORDS, "metal": metal_words.WORDS}
PACKAGE = Path(vocabulary.__file__).parent.parent


def test_the_declaration_is_what_its_text_declares():
    text = Path(vocabulary.__file__).read_text()
    declared = re.findall(r"^(\w+): Any = _declared", text, re.MULTILINE)
    assert {*declared, *re.findall(r"^def ([a-z]\w+)\(", text, re.MULTILINE)} == vocabulary.WORDS


@pytest.mark.parametrize("machine", [*MACHINES, "triton"])
def test_a_machine_has_exactly_these_words(machine):
    words = MACHINES.get(machine) or pytest.importorskip("quantmill.qkernels.lanes.triton_words").WORDS
    own = set(words) - vocabulary.WORDS
    assert own <= set(vocabulary.OWN_WAYS)
    spared = set().union(*(vocabulary.OWN_WAYS[name] for name in own))
    assert vocabulary.WORDS - set(words) == spared


def test_what_a_machine_may_do_its_own_way_is_all_that_uses_the_words_it_then_lacks():
    """`nearest` stands in `snap` and `forget` only, so a machine that has these never needs it."""
    users = set()
    for file in (PACKAGE / "programs").glob("*.py"):
        for node in ast.parse(file.read_text()).body:
            if isinstance(node, ast.FunctionDef):
                names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                users |= {node.name} if "nearest" in names else set()
    assert users
    assert users <= set(vocabulary.OWN_WAYS)


@pytest.mark.parametrize("folder", ["programs", "decode"])
def test_programs_use_declared_words_only(folder):
    for file in (PACKAGE / folder).glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").endswith("lanes.vocabulary"):
                assert {alias.name for alias in node.names} <= vocabulary.WORDS, file.name


@pytest.mark.parametrize("folder", ["programs", "decode"])
def test_the_sign_of_a_value_is_turned_by_its_word(folder):
    """Of -v Triton made 0 - v before 3.8, which of +0 is +0. What has a minus is a number known to the compiler."""
    for file in (PACKAGE / folder).glob("*.py"):
        for program in ast.parse(file.read_text()).body:
            if not isinstance(program, ast.FunctionDef) or not {a.arg for a in program.args.args} & {
                "j",
                "v",
            }:
                continue
            for node in ast.walk(program):
                if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                    names = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
                    assert all(name.isupper() for name in names), (
                        f"{file.name}, {program.name}: {ast.unparse(node)}"
                    )


def test_arrays_are_bound_by_name():
    """The order in which a phase lists them means nothing; a swap would have to be written out."""
    assert Phase(pack_q6_k).arguments == ("code", "alive", "out")
    assert Phase(scales_q6_k, {"OUT": "a", "SCALE": "b"}).arguments == ("b", "sc", "alive", "a")
    assert Phase(scales_q6_k, {"SCALE": "b", "OUT": "a"}).arguments == ("b", "sc", "alive", "a")


def test_a_phase_refuses_what_its_program_does_not_take():
    with pytest.raises(TypeError, match=r"pack_q6_k\(.*\) has no LEVELS"):
        Phase(pack_q6_k, {"LEVELS": 3})


@pytest.mark.parametrize("scratch", [{"code": (256, "u8")}, {"code": (256, "u8"), "lives": (1, "i32")}])
def test_an_encoder_refuses_a_phase_without_its_arrays(scratch):
    with pytest.raises(TypeError, match="pack_q6_k names alive, which no array of the encoder is"):
        Encoder(family="scale", scratch=scratch, phases=(Phase(pack_q6_k),))


def test_importance_is_there_for_encoders_that_use_it_only():
    arrays = {"code": (1, "u8")}
    phase = Phase(pack_q6_k, {"ALIVE": "importance"})
    Encoder(family="scale", scratch=arrays, phases=(phase,), uses_importance=True)
    with pytest.raises(TypeError, match="names importance"):
        Encoder(family="scale", scratch=arrays, phases=(phase,), tables={"trials": constants(1)})


def test_every_phase_is_bound():
    for encoder in encoders().values():
        for phase in encoder.phases:
            assert phase.program.__module__.startswith("quantmill.qkernels.programs.")
            assert len(phase.arguments) == phase.program.__code__.co_argcount - 1
