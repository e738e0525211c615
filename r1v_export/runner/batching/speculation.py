"""Several tokens a step without a draft model: tokens that followed the same words before are checked together.

A sequence's last few tokens are looked for in its prompt and answer; what followed them there is its draft (prompt
lookup decoding; Saxena 2023, and vLLM's `ngram`). One decoder step computes the logits behind each token of the draft,
and the tokens are chosen from them one after the other, as always, up to the first that is not the draft's. A draft is
one certain sequence, so this is rejection sampling with a proposal of probability one: every token is drawn from the
model's own distribution, and by the same random number as without drafts.

How long drafts are follows from two measurements, taken while requests are answered: how often drafts of a sequence
are right, checked for each of its tokens, whether the draft was used or not; and how long steps of so many rows and
tokens take. Text that does not repeat is never worth a longer step, so it is decoded as without drafts.
"""

from __future__ import annotations

import statistics
from array import array
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

DRAFT_TOKENS = 8
"""Tokens of a draft that are checked in one step, unless asked otherwise."""

LONGEST_MATCH, SHORTEST_MATCH = 4, 2
"""Tokens that a draft's place has in common with the end of its sequence."""

_PLACES = 16
"""Places that are compared, the latest ones."""

_PRIOR = {2: 0.3, 3: 0.5, 4: 0.7}
_LEARNING = 1 / 8
"""Weight of a token in the share of right drafts."""

_KEPT, _FORGOTTEN = 5, 512
"""Measured steps of a shape that count, and decoding steps after which they no longer do."""

_LEAST_GAIN = 1.05
"""By which a longer step must be worth it: times are measured, and vary."""


@dataclass
class Draft:
    """Tokens that may come next.

    Attributes:
        token_ids: the tokens; none where nothing like the end of the sequence was there before.
        matched: how many tokens their place has in common with the end of the sequence.
    """

    token_ids: list[int] = field(default_factory=list)
    matched: int = SHORTEST_MATCH


def draft_of(held: array[int], last: int, count: int) -> Draft:
    """The `count` tokens that followed the latest place of those with the longest match.

    Args:
        held: token ids of the sequence but for its last one.
        last: the last one.
    """
    if len(held) < SHORTEST_MATCH or count < 1:
        return Draft()
    ids = np.frombuffer(held, dtype=np.int64)
    ends = np.flatnonzero((ids[:-1] == held[-1]) & (ids[1:] == last))[-_PLACES:][::-1] + 2
    if not len(ends):
        return Draft()
    matched, start = max(((_match(held, int(end)), int(end)) for end in ends), key=lambda place: place[0])
    following = [*held[start : start + count]]
    if len(following) < count:
        following.append(last)
    # A place near the end is followed by the draft itself, as in text that repeats one word.
    while len(following) < count:
        following.append(following[len(following) - (len(held) + 1 - start)])
    return Draft(following, matched)


def _match(held: array[int], end: int) -> int:
    """How many tokens before `end` are equal to those at the end of the sequence, of which two are known to be."""
    matched = SHORTEST_MATCH
    while matched < LONGEST_MATCH and end > matched and held[end - 1 - matched] == held[-matched]:
        matched += 1
    return matched


class Acceptance:
    """How often one sequence's drafts are right, by the length of their match."""

    def __init__(self) -> None:
        self._right = dict(_PRIOR)

    def learn(self, draft: Draft, chosen: Sequence[int]) -> None:
        """Compare a draft with the tokens that came."""
        for index, (guess, token) in enumerate(zip(draft.token_ids, chosen, strict=False)):
            matched = min(LONGEST_MATCH, draft.matched + index)
            self._right[matched] += _LEARNING * ((guess == token) - self._right[matched])
            if guess != token:
                return

    def expected_tokens(self, draft: Draft, count: int) -> float:
        """Tokens that a step with the first `count` of the draft gives, the last one included that is always right."""
        expected = reached = 1.0
        for index in range(min(count, len(draft.token_ids))):
            reached *= self._right[min(LONGEST_MATCH, draft.matched + index)]
            expected += reached
        return expected


class StepTimes:
    """Duration of decoder steps, by rows and tokens of each row."""

    def __init__(self) -> None:
        self._steps = 0
        self._met: set[tuple[int, int]] = set()
        self._measured: dict[tuple[int, int], deque[tuple[int, float]]] = defaultdict(lambda: deque(maxlen=_KEPT))

    def record(self, rows: int, seq: int, step_ms: float) -> None:
        """Note a step's duration. The first one of a shape may have prepared something, and does not count."""
        self._steps += 1
        if (rows, seq) in self._met:
            self._measured[rows, seq].append((self._steps, step_ms))
        self._met.add((rows, seq))

    def get(self, rows: int, seq: int) -> float | None:
        """The median, in milliseconds; None where none was measured lately."""
        measured = self._measured.get((rows, seq))
        if not measured or measured[-1][0] + _FORGOTTEN < self._steps:
            return None
        return statistics.median(step_ms for _, step_ms in measured)


def draft_length(times: StepTimes, drafts: Sequence[Draft], acceptances: Sequence[Acceptance], most: int) -> int:
    """How many draft tokens the next step checks in each row: what gives most tokens in the least time.

    A step that was not measured is taken to last as long as the next shorter one, and so is soon measured.

    Args:
        drafts, acceptances: of each row that is decoded.
        most: of which no step has more.
    """
    rows = len(drafts)
    step_ms = times.get(rows, 1)
    longest = min(most, max((len(draft.token_ids) for draft in drafts), default=0))
    if step_ms is None:
        return 0
    best, best_rate = 0, _LEAST_GAIN * rows / step_ms
    count = 1
    while count <= longest:
        step_ms = times.get(rows, 1 + count) or step_ms
        tokens = sum(each.expected_tokens(draft, count) for draft, each in zip(drafts, acceptances, strict=True))
        if tokens / step_ms > best_rate:
            best, best_rate = count, tokens / step_ms
        count *= 2
    return best
