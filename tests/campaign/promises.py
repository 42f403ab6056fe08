"""What campaigns find: promise, cases, held, and each case that was not."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outcome:
    """One case of a promise; ``broken`` says how it was not held."""

    promise: str
    case: str
    broken: str | None = None


@dataclass
class Tally:
    """Outcomes, counted."""

    outcomes: list[Outcome] = field(default_factory=list)
    loud: bool = True

    def add(self, outcome):
        self.outcomes.append(outcome)
        if outcome.broken and self.loud:
            print(f"BROKEN {outcome.promise}: {outcome.case}: {outcome.broken}", flush=True)

    @property
    def broken(self):
        return [outcome for outcome in self.outcomes if outcome.broken]

    def table(self):
        """Markdown: a row a promise."""
        cases = defaultdict(list)
        for outcome in self.outcomes:
            cases[outcome.promise].append(outcome)
        rows = ["| promise | cases | held |", "|---|---|---|"]
        for promise, found in cases.items():
            rows.append(f"| {promise} | {len(found):,} | {sum(not each.broken for each in found):,} |")
        return "\n".join(rows)
