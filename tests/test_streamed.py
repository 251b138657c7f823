"""Models whose layers are read one at a time: the same numbers as in memory, and the memory of one layer."""

import pytest
import torch

from quantmill import cli
from quantmill.imatrix.store import load as load_matrix
from quantmill.models.model import load
from quantmill.models.packed import n_bytes
from quantmill.models.streamed import load_streamed
from tests.support.measure_models import EXAMPLE, tiny

TEXT = EXAMPLE / "calibration.txt"


def same_logits(path, vocabulary=256):
    torch.manual_seed(0)
    whole, streamed = load(path, converted=True), load_streamed(path)
    batches = [torch.randint(0, vocabulary, (n_seq, 24)) for n_seq in (3, 3, 2)]
    streamed.prepare(batches)
    for ids in (*batches, torch.randint(0, vocabulary, (1, 9))):  # the last was not announced
        for first in (0, 5):
            assert torch.equal(whole.logits(ids, first), streamed.logits(ids, first))
    assert not any(streamed.states.values())  # logits that were asked for are forgotten
    return whole, streamed


@pytest.mark.parametrize("path", [tiny("Q8_0"), EXAMPLE])
def test_logits_are_those_of_the_model_in_memory(path):
    whole, streamed = same_logits(path)
    assert streamed.n_bytes < whole.n_bytes / 4
    assert n_bytes(streamed.model) == streamed.n_bytes  # nothing of a layer was kept


def test_only_one_layer_is_held():
    streamed = load_streamed(tiny("F16"))
    held = []
    for _, take in streamed.layers([torch.zeros(1, 8, dtype=torch.int64)]):
        take(0)
        held.append(n_bytes(streamed.model) - streamed.n_bytes)
    whole = load(tiny("F16"))
    assert max(held) < (whole.n_bytes - streamed.n_bytes) / len(held) * 1.2
    assert min(held) > 0


def test_states_that_are_not_finite_name_their_layer():
    from quantmill.models.errors import ModelError

    streamed = load_streamed(tiny("F16"))
    embeddings = streamed.model.get_input_embeddings()
    embeddings.register_forward_hook(lambda module, given, out: out * float("inf"))
    with pytest.raises(ModelError, match=r"what model\.layers\.0 puts out is not finite"):
        streamed.prepare([torch.ones(1, 8, dtype=torch.int64)])


@pytest.mark.parametrize(
    "options", [["--process-output", "--means"], pytest.param(["--no-ppl"], marks=pytest.mark.slow)]
)
def test_an_importance_matrix_is_the_same(tmp_path, options):
    model = str(tiny("Q8_0"))
    common = ["imatrix", model, "-f", str(TEXT), "--ctx", "64", "--chunks", "14", *options]
    for name, more in (("a", []), ("b", ["--stream"])):
        assert cli.main([*common, "-o", str(tmp_path / f"{name}.gguf"), *more]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert len(load_matrix(tmp_path / "b.gguf").entries) > 20


def test_an_evaluation_is_the_same(tmp_path):
    import json

    common = ["evaluate", str(tiny("Q8_0")), "--base", str(tiny("F16")), "--text", str(TEXT)]
    common += ["--ctx", "64", "--chunks", "12"]
    found = []
    for name, more in (("a", []), ("b", ["--stream"])):
        assert cli.main([*common, *more, "-o", str(tmp_path / f"{name}.json")]) == 0
        found.append(json.loads((tmp_path / f"{name}.json").read_text()))
    assert found[0]["models"] == found[1]["models"]
    assert found[0]["base"] == found[1]["base"]
    assert any("layer by layer" in note for note in found[1]["notes"])


def test_a_text_that_repeats_itself_passes_too(tmp_path):
    """Batches of the same tokens, read out by several threads."""
    text = tmp_path / "text.txt"
    text.write_text("the cat\n" * 2000)
    model, common = str(tiny("Q8_0")), ["--ctx", "64", "--chunks", "12", "--threads", "4"]
    for name, more in (("a", []), ("b", ["--stream"])):
        words = ["-f", str(text), "--batch", "1", "-o", str(tmp_path / f"{name}.gguf")]
        assert cli.main(["imatrix", model, *words, *common, *more]) == 0
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    streamed = load_streamed(model)
    ids = torch.ones(1, 8, dtype=torch.int64)
    streamed.prepare([ids, ids])
    passed = []
    streamed.prepare = passed.append
    assert torch.equal(streamed.logits(ids), streamed.logits(ids))
    assert not passed


def test_threads_may_ask_for_ids_that_were_not_announced():
    from concurrent.futures import ThreadPoolExecutor

    torch.manual_seed(0)
    whole, streamed = load(tiny("Q8_0"), converted=True), load_streamed(tiny("Q8_0"))
    batches = [torch.randint(0, 256, (1, 16)) for _ in range(8)]
    streamed.prepare(batches[::2])
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(streamed.logits, batches))
    assert all(torch.equal(one, whole.logits(ids)) for one, ids in zip(found, batches, strict=True))


def test_states_that_another_thread_took_are_made_again():
    """A thread with the same ids comes between the making of a state and its taking."""
    streamed = load_streamed(tiny("Q8_0"))
    ids = torch.ones(1, 8, dtype=torch.int64)
    prepare, robbed = streamed.prepare, []

    def then_robbed(batches):
        prepare(batches)
        if not robbed:
            robbed.extend(streamed.states[key].pop() for key in streamed.states)

    streamed.prepare = then_robbed
    assert torch.equal(streamed.logits(ids), load(tiny("Q8_0"), converted=True).logits(ids))
    assert robbed


def test_a_run_with_nothing_left_reads_no_layer():
    assert list(load_streamed(str(tiny("Q8_0"))).layers([])) == []


def test_tasks_are_refused(tmp_path, capsys):
    tasks = tmp_path / "tasks.txt"
    tasks.write_text("x")
    assert cli.main(["evaluate", str(tiny("F16")), "--stream", "--hellaswag", str(tasks)]) == 2
    assert "--stream reads the model once for a whole text" in capsys.readouterr().err
