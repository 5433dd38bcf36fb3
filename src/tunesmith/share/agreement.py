"""How closely another model says what a live adapter says: log-probabilities, greedy answers, loss.

Shapes: P positions, V entries of the vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from tunesmith.data import TokenRow
from tunesmith.data.batches import plan_micro_batches
from tunesmith.errors import DataError, OutOfMemory
from tunesmith.model.engine import Answer, Engine
from tunesmith.model.memory import in_parts

#: How much of the live adapter's log-probabilities is kept, in bytes, and at most how many positions of them:
#: more would say nothing new.
_KEPT_BYTES, _MAX_POSITIONS = 256 << 20, 4096
#: Tokens of rows whose loss is computed at once.
_LOSS_TOKENS = 2048
#: KL in nats a token below which two models differ by rounding alone.
ROUNDING_KL = 1e-6


@dataclass(frozen=True)
class Agreement:
    """A model against the live adapter.

    kl: mean KL(live || model) [nats a token] at `positions`. top1: the share of them with the same likeliest
    token. greedy: the share of `prompts` whose greedy answer is the same token for token; None without
    prompts. loss, loss_live: mean loss [nats a token] on the held-out rows.
    """

    kl: float
    top1: float
    greedy: float | None
    loss: float
    loss_live: float
    positions: int
    prompts: int

    def figures(self) -> dict[str, float | int | None]:
        """The same for JSON, which has no NaN and no infinity: they are None."""
        return {key: value if value is None or math.isfinite(value) else None
                for key, value in asdict(self).items()}

    def line(self) -> str:
        """The same in words."""
        answers = "" if self.greedy is None else f", {100 * self.greedy:.0f}% of greedy answers the same"
        return (f"KL {self.kl:.3g} nats a token, top-1 the same at {100 * self.top1:.1f}%{answers}, "
                f"loss {self.loss:.4f}")


@dataclass(frozen=True)
class Reference:
    """What a live adapter says, kept for when its model is gone.

    row_positions: the (row, positions) that are compared. log_probabilities_PV: fp32, in that order.
    bare: its base, with the adapter off, against it: the yardstick of what the adapter does.
    """

    rows: Sequence[TokenRow]
    prompts: Sequence[list[int]]
    max_new_tokens: int
    row_positions: list[tuple[int, list[int]]]
    log_probabilities_PV: torch.Tensor
    answers: list[Answer]
    loss: float
    bare: Agreement


def reference(engine: Engine, rows: Sequence[TokenRow], prompts: Sequence[list[int]],
              max_new_tokens: int) -> Reference:
    """Ask the live adapter, then its bare base. Nothing is drawn: the same rows give the same positions.

    rows: held out. prompts: token ids, answered with at most max_new_tokens.
    Raises DataError when no token of the rows bears loss, OutOfMemory.
    """
    engine.training(False)
    if not any(any(row.loss_mask[1:]) for row in rows):
        raise DataError(
            "no held-out row with a token that bears loss: there is nothing to compare a merge on",
            "Hold some rows out (data.validation).")
    vocabulary = engine.logits([rows[0].ids[:1]])[0].shape[1]
    row_positions = _choose_positions(rows, min(_MAX_POSITIONS, max(1, _KEPT_BYTES // (4 * vocabulary))))
    kept_PV = torch.empty(sum(len(positions) for _, positions in row_positions), vocabulary)
    for part, log_PV in _log_probabilities(engine, rows, row_positions, vocabulary):
        kept_PV[part] = log_PV
    answers, loss = _answers(engine, prompts, max_new_tokens), _mean_loss(engine, rows)
    whole = Reference(rows, prompts, max_new_tokens, row_positions, kept_PV, answers, loss, _UNKNOWN)
    with engine.adapter_disabled():
        return Reference(rows, prompts, max_new_tokens, row_positions, kept_PV, answers, loss,
                         compare(engine, whole))


def compare(engine: Engine, reference: Reference) -> Agreement:
    """Ask another model the same and say how far it is from the live adapter. Raises OutOfMemory."""
    engine.training(False)
    live_PV, nats, same = reference.log_probabilities_PV, 0.0, 0
    for part, other_PV in _log_probabilities(engine, reference.rows, reference.row_positions,
                                             live_PV.shape[1]):
        for row, place in enumerate(range(part.start, part.stop)):
            nats += _divergence(live_PV[place], other_PV[row])
            same += int(live_PV[place].argmax() == other_PV[row].argmax())
    answers = _answers(engine, reference.prompts, reference.max_new_tokens)
    equal = [a == b for a, b in zip(answers, reference.answers, strict=True)]
    return Agreement(kl=nats / len(live_PV), top1=same / len(live_PV),
                     greedy=sum(equal) / len(equal) if equal else None,
                     loss=_mean_loss(engine, reference.rows), loss_live=reference.loss,
                     positions=len(live_PV), prompts=len(equal))


def _divergence(live_V: torch.Tensor, other_V: torch.Tensor) -> float:
    """KL(live || other) in nats, of log-probabilities.

    As the sum of p (d + exp(-d) - 1) with d = log p - log q, which no rounding makes negative: it is KL where
    both sum to one, and the small error of a sum in fp32 would else drown the KL of models that differ by
    rounding alone.
    """
    live_V, other_V = live_V.double(), other_V.double()
    differences_V = live_V - other_V
    terms_V = live_V.exp() * (differences_V + torch.expm1(-differences_V))
    return torch.where(live_V == -math.inf, other_V.exp(), terms_V).sum().item()


def lost(agreement: Agreement, bare: Agreement) -> str | None:
    """Why a merge has lost its adapter; None when it has not.

    It has when it stayed nearer to the bare base than half of the way, or when the adapter does nothing to be
    kept.
    """
    if math.isnan(bare.kl):
        return "the live adapter or its bare base answers with NaN, so nothing can be compared"
    if bare.kl < ROUNDING_KL:
        return ("the adapter changes nothing that can be measured: KL(live || bare base) is "
                f"{bare.kl:.2g} nats a token")
    if not agreement.kl < bare.kl / 2:  # also for NaN
        return ("it did not come half of the way from the bare base to the live adapter: KL(live || merged) "
                f"is {agreement.kl:.3g} nats a token, KL(live || bare base) {bare.kl:.3g}")
    return None


def better(candidates: Sequence[tuple[str, Agreement]]) -> str:
    """The name with the smallest KL; NaN loses to every number, and of equals the first is taken."""
    return min(candidates, key=lambda pair: math.inf if math.isnan(pair[1].kl) else pair[1].kl)[0]


_UNKNOWN = Agreement(math.nan, math.nan, None, math.nan, math.nan, 0, 0)


def _choose_positions(rows: Sequence[TokenRow], wanted: int) -> list[tuple[int, list[int]]]:
    """At most `wanted` positions whose next token bears loss, at even steps through the rows."""
    every = [(i, t) for i, row in enumerate(rows) for t in range(len(row.ids) - 1) if row.loss_mask[t + 1]]
    count = min(wanted, len(every))
    chosen: dict[int, list[int]] = {}
    for i, t in (every[k * len(every) // count] for k in range(count)):
        chosen.setdefault(i, []).append(t)
    return list(chosen.items())


def _log_probabilities(engine: Engine, rows: Sequence[TokenRow], row_positions: list[tuple[int, list[int]]],
                       vocabulary: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """For each row of `row_positions` (slice of all positions, log-probabilities [P, V] in fp32 on the CPU).
    """
    starts = [0]
    for _, positions in row_positions:
        starts.append(starts[-1] + len(positions))
    # A row is read as far as its last position; what follows changes nothing before it.
    lengths = [positions[-1] + 1 for _, positions in row_positions]
    max_tokens = max(1, _KEPT_BYTES // (4 * vocabulary))

    def too_large(k: int) -> OutOfMemory:
        return OutOfMemory(f"the logits of a held-out row of {lengths[k]} tokens do not fit in memory",
                           "Compare on shorter rows, or on the CPU.")

    parts = plan_micro_batches(lengths, rows=None, max_tokens=max_tokens, overhead_tokens=64,
                               padded=engine.padded)
    for chosen, part_logits in in_parts(parts, lambda part: engine.logits(
            [rows[row_positions[k][0]].ids[:lengths[k]] for k in part]), too_large):
        for k, logits_TV in zip(chosen, part_logits, strict=True):
            at_P = torch.tensor(row_positions[k][1], device=logits_TV.device)
            yield slice(starts[k], starts[k + 1]), logits_TV[at_P].float().log_softmax(-1).cpu()


def _answers(engine: Engine, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
    return engine.generate(prompts, max_new_tokens) if prompts else []


def _mean_loss(engine: Engine, rows: Sequence[TokenRow]) -> float:
    """Nats a loss-bearing token over all rows."""
    rows = [row for row in rows if any(row.loss_mask[1:])]
    parts = plan_micro_batches([len(row.ids) for row in rows], rows=None, max_tokens=_LOSS_TOKENS,
                               overhead_tokens=64, padded=engine.padded)

    def too_large(k: int) -> OutOfMemory:
        return OutOfMemory(f"a held-out row of {len(rows[k].ids)} tokens alone does not fit in memory",
                           "Compare on shorter rows.")

    nats = sum(part_nats for _, part_nats in in_parts(
        parts, lambda part: engine.losses([rows[k] for k in part]).double().sum().item(), too_large))
    return nats / sum(sum(row.loss_mask[1:]) for row in rows)
