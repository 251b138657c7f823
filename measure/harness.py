"""EleutherAI's lm-evaluation-harness on a loaded model, for tasks beyond those of llama.cpp's files."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from quantmill.measure.errors import MeasureError
from quantmill.models.model import LoadedModel
from quantmill.models.scoring import BATCH_TOKENS, LOGIT_BYTES
from quantmill.models.workers import ALONE, Workers


def require_harness() -> None:
    """Raises MeasureError when the harness is not installed: to be asked before other work."""
    if find_spec("lm_eval") is None:
        raise MeasureError("--lm-eval needs the harness: pip install 'quantmill[lm-eval]'")


def run_harness(
    loaded: LoadedModel,
    tasks: Sequence[str],
    n_ctx: int,
    limit: int | None = None,
    workers: Workers = ALONE,
) -> dict[str, float]:
    """Metrics of harness tasks by "task metric". limit: examples a task, None for all.

    Raises MeasureError when the harness is not installed, knows no such task, or a task generates text.
    """
    require_harness()
    from lm_eval import evaluator

    try:
        found = evaluator.simple_evaluate(
            model=_harness_model(loaded, n_ctx, workers), tasks=list(tasks), limit=limit, log_samples=False
        )
    except (KeyError, OSError) as error:
        raise MeasureError(
            f"lm-eval tasks {', '.join(tasks)}: {error.args[0] if error.args else error}"
        ) from error
    out = {}
    for task, metrics in found["results"].items():
        for metric, value in metrics.items():
            if isinstance(value, float | int) and not isinstance(value, bool) and "," in metric:
                out[f"{task} {metric.removesuffix(',none')}"] = float(value)
    return out


def _harness_model(loaded: LoadedModel, n_ctx: int, workers: Workers) -> Any:
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    class HarnessModel(TemplateLM):
        """Log-likelihoods of token sequences; the prefix of an empty context is BOS, or the end of a text."""

        @property
        def eot_token_id(self) -> int:
            return loaded.tokenizer.bos if loaded.tokenizer.bos is not None else 0

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return loaded.tokenizer.encode(string, add_special=bool(add_special_tokens))

        def _loglikelihood_tokens(
            self, requests: Sequence[tuple[Any, list[int], list[int]]], **kwargs: Any
        ) -> list[tuple[float, bool]]:
            pairs = [(context[-n_ctx:], continuation) for _, context, continuation in requests]
            return _continuations(loaded, pairs, n_ctx, workers)

        def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
            out = []
            for request in requests:
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=n_ctx - 1,
                    context_len=1,
                )
                pairs = [make_disjoint_window(window) for window in windows]
                out.append(sum(score for score, _ in _continuations(loaded, pairs, n_ctx, workers)))
            return out

        def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
            raise MeasureError(
                "this lm-eval task generates text; only tasks scored by likelihood run here. "
                "Serve the GGUF with llama-server and give lm-eval its address"
            )

    return HarnessModel()


def _continuations(
    loaded: LoadedModel, pairs: Sequence[tuple[list[int], list[int]]], n_ctx: int, workers: Workers
) -> list[tuple[float, bool]]:
    """(context, continuation) token ids -> (sum of the continuation's log p, whether it is the greedy one)."""
    order = sorted(range(len(pairs)), key=lambda i: len(pairs[i][0]) + len(pairs[i][1]))
    room = min(BATCH_TOKENS, max(1, LOGIT_BYTES // (4 * loaded.n_vocab)))
    batches: list[tuple[list[int], int]] = []  # which pairs, and the longest of them
    while order:
        longest = min(n_ctx, sum(map(len, pairs[order[-1]])))
        batches.append(([order.pop() for _ in range(min(len(order), max(1, room // longest)))], longest))

    def one(found: tuple[list[int], int]) -> list[tuple[float, bool]]:
        batch, longest = found
        rows = [(pairs[i][0] + pairs[i][1])[-n_ctx:] for i in batch]
        ids = torch.zeros(len(rows), longest, dtype=torch.int64)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        logits = loaded.logits(ids)
        out = []
        for i, tokens, predicted in zip(batch, rows, logits, strict=True):
            n = min(len(pairs[i][1]), len(tokens) - 1)
            log_p = torch.log_softmax(predicted[len(tokens) - n - 1 : len(tokens) - 1].float(), dim=-1)
            target = torch.tensor(tokens[len(tokens) - n :], device=log_p.device)
            total = float(log_p.gather(-1, target[:, None]).sum())
            out.append((total, bool((log_p.argmax(-1) == target).all())))
        return out

    scored = dict(
        pair
        for (batch, _), found in zip(batches, workers.map(one, batches), strict=True)
        for pair in zip(batch, found, strict=True)
    )
    return [scored[i] for i in range(len(pairs))]
