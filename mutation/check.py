"""Holds the mutants that survived `mutmut run` against the list of those that may: `make mutate`.

A survivor that nobody wrote a reason for fails the run, and so does a reason for a mutant that is killed or gone.
"""

import sys
from collections import Counter
from pathlib import Path

import yaml
from mutmut.mutation.data import SourceFileMutationData
from mutmut.mutation.diff_apply import get_diff_for_mutant
from mutmut.stats import status_by_exit_code
from mutmut.utils.file_utils import walk_mutatable_files

Survivor = tuple[str, str]


def function_of(mutant: str) -> str:
    """`engines.CumulativeEngine.fire` of `spikezip_hf.models.engines.xǁCumulativeEngineǁfire__mutmut_7`."""
    module, _, name = mutant.rpartition("__mutmut_")[0].rpartition(".")
    return f"{module.rpartition('.')[2]}.{name.removeprefix('x_').removeprefix('xǁ').replace('ǁ', '.')}"


def change_of(mutant: str, path: Path) -> str:
    """The lines that the mutant has in place of others, as one."""
    lines = get_diff_for_mutant(mutant, path=path).splitlines()
    return " ".join(line[1:].strip() for line in lines if line.startswith("+") and not line.startswith("+++"))


def run_mutants() -> tuple[Counter, list[Survivor]]:
    """How many mutants came to which end, and those that no test has noticed: (function, what it became)."""
    ends: Counter = Counter()
    survivors = []
    for path in walk_mutatable_files():
        data = SourceFileMutationData(path=path)
        data.load()
        for mutant, code in data.exit_code_by_key.items():
            end = status_by_exit_code[code]
            ends[end] += 1
            if end != "killed":
                survivors.append((function_of(mutant), change_of(mutant, path)))
    return ends, survivors


def written_reasons(path: Path) -> dict[Survivor, str]:
    """Each survivor of the list, and why it may survive."""
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return {(entry["in"], change): entry["why"] for entry in entries for change in entry["becomes"]}


def main() -> int:
    ends, survivors = run_mutants()
    reasons = written_reasons(Path(__file__).with_name("survivors.yaml"))
    unwritten = [survivor for survivor in survivors if survivor not in reasons]
    stale = reasons.keys() - set(survivors)
    for function, change in unwritten:
        print(f"NO TEST FAILS AND NO WRITTEN REASON {function}: {change}")
    for function, change in sorted(stale):
        print(f"NO SURVIVOR {function}: {change}")
    print(f"{ends.total()} mutants:", ", ".join(f"{count} {end}" for end, count in ends.most_common()))
    print(f"{len(survivors) - len(unwritten)} of {len(survivors)} survivors have a reason in mutation/survivors.yaml")
    return bool(unwritten or stale or not ends)


if __name__ == "__main__":
    sys.exit(main())
