"""Samples the next token in llama.cpp, so that the logits of a large vocabulary never pass through Python.

A grammar checks the sampled token alone; only if it refuses that one, all tokens are filtered and sampled again.
"""

import ctypes
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import llama_cpp as llama
import numpy as np

from ...errors import BorealisError, InvalidInput
from ..events import Candidate, Chosen
from ..prompting.sampling_settings import Sampling
from .vocabulary import Vocabulary, clear_errors, error_clause

if TYPE_CHECKING:
    from .engine import Engine

untyped: Any = llama  # its declarations do not fit what its functions take
NO_PENALTIES = (1.0, 0.0, 0.0)
TOKEN = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])  # llama_token_data


class Sampler:
    """llama.cpp's sampler chain and grammar for one answer; `close()` frees the memory."""

    def __init__(self, engine: "Engine", sampling: Sampling, seed: int, grammar: str | None = None) -> None:
        """Raises InvalidInput for a grammar (GBNF) that llama.cpp does not take."""
        self.engine = engine
        self._grammar: Any = None
        self._chain: Any = None
        if grammar is not None:
            clear_errors()
            self._grammar = llama.llama_sampler_init_grammar(engine.vocab, grammar.encode("utf-8"), b"root")
            if not self._grammar:
                raise InvalidInput(f"the schema: llama.cpp cannot follow it{error_clause()}; make it simpler")
        self._chain = _new_chain(sampling, seed, engine.n_vocab)
        self._greedy = grammar is None and _is_greedy(sampling)
        self._penalty_window = sampling.repeat_last_n if _penalties(sampling) != NO_PENALTIES else 0

    def close(self) -> None:
        """Free the memory; a second call does nothing."""
        for sampler in (self._chain, self._grammar):
            if sampler:
                llama.llama_sampler_free(sampler)
        self._chain = self._grammar = None

    def accept_prompt(self, ids: Sequence[int]) -> None:
        """Show the repeat penalty the last tokens of the prompt."""
        for id in ids[-self._penalty_window :] if self._penalty_window > 0 else ():
            llama.llama_sampler_accept(self._chain, id)

    def sample(self, n: int) -> int:
        """A token from the logits after token `n` of the last batch."""
        if self._greedy:
            return int(self.engine.logits_at(n).argmax())
        if self._grammar is None:
            return self._sample_in_chain(n)
        penalties = bool(self._penalty_window)  # then the chain must accept no token that the grammar refuses
        id = self._select(_candidates(self.engine.logits_at(n))) if penalties else self._sample_in_chain(n)
        if not self._grammar_allows(id):
            allowed = _candidates(self.engine.logits_at(n))
            self._apply(self._grammar, allowed)
            id = self._select(allowed)
            if not self._grammar_allows(id):  # accepting it would end the process
                raise BorealisError("the answer cannot go on under its schema with the tokens of this model")
        if penalties:
            llama.llama_sampler_accept(self._chain, id)
        llama.llama_sampler_accept(self._grammar, id)
        return id

    def _sample_in_chain(self, n: int) -> int:
        """Sample in llama.cpp alone. The chain accepts the token at once, which only a repeat penalty would notice."""
        return llama.llama_sampler_sample(self._chain, self.engine.context, n)

    def _select(self, tokens: np.ndarray) -> int:
        array = self._apply(self._chain, tokens)
        return array.data[array.selected].id

    def _grammar_allows(self, id: int) -> bool:
        one = np.array([(id, 1.0, 0.0)], TOKEN)
        self._apply(self._grammar, one)
        return bool(np.isfinite(one["logit"][0]))

    def _apply(self, sampler: Any, tokens: np.ndarray) -> Any:
        """Let `sampler` change, sort and choose among `tokens`, in place."""
        data = tokens.ctypes.data_as(ctypes.POINTER(llama.llama_token_data))
        array = llama.llama_token_data_array(data=data, size=len(tokens), selected=-1, sorted=False)
        untyped.llama_sampler_apply(sampler, ctypes.byref(array))
        return array


def _candidates(logits: np.ndarray) -> np.ndarray:
    tokens = np.empty(len(logits), TOKEN)
    tokens["id"], tokens["logit"], tokens["p"] = np.arange(len(logits)), logits, 0
    return tokens


def _is_greedy(sampling: Sampling) -> bool:
    """Whether the largest logit is taken, whatever came before."""
    return sampling.temperature == 0 and _penalties(sampling) == NO_PENALTIES


def _penalties(sampling: Sampling) -> tuple[float, float, float]:
    return sampling.repeat_penalty, sampling.frequency_penalty, sampling.presence_penalty


def _new_chain(sampling: Sampling, seed: int, n_vocab: int) -> Any:
    chain = llama.llama_sampler_chain_init(llama.llama_sampler_chain_default_params())
    steps = []
    if (penalties := _penalties(sampling)) != NO_PENALTIES:
        steps.append(llama.llama_sampler_init_penalties(n_vocab, sampling.repeat_last_n, *penalties))
    if sampling.temperature == 0:
        steps.append(llama.llama_sampler_init_greedy())
    else:
        steps.append(llama.llama_sampler_init_top_k(sampling.top_k))
        steps.append(llama.llama_sampler_init_top_p(sampling.top_p, 1))
        steps.append(llama.llama_sampler_init_min_p(sampling.min_p, 1))
        steps.append(llama.llama_sampler_init_temp(sampling.temperature))
        steps.append(llama.llama_sampler_init_dist(seed))
    for step in steps:
        llama.llama_sampler_chain_add(chain, step)
    return chain


def with_logprobs(vocabulary: Vocabulary, logits: np.ndarray, id: int, count: int) -> Chosen:
    """`id` and the `count` likeliest tokens with their log-probabilities, as the model has them before sampling."""
    scores = logits - logits.max()
    scores -= np.log(np.exp(scores, dtype=np.float64).sum())
    count = min(count, len(scores))
    best = np.argpartition(-scores, count - 1)[:count] if count else np.empty(0, int)
    best = best[np.argsort(-scores[best], kind="stable")]
    top = tuple(Candidate(int(i), vocabulary.piece(int(i)), float(scores[i])) for i in best)
    return Chosen(id, vocabulary.piece(id), float(scores[id]), top)
