"""Mathematical equality by `math-verify`, in a process that anything may be asked: run as a program by
`larpo.rewards.mathematics`.

Reads a JSON list of [gold, answer] from standard input, both LaTeX or text, and writes a line per pair: [what was read
from the answer, whether it equals the gold one, its expression], or null where that takes more than `SECONDS` of
processor time or `MEMORY` bytes. Each pair is computed in a child that the kernel ends: a big power in C hears no
signal handler, and wall time would make a busy machine give other rewards. A child goes on to the next pair; another
one follows where it ended.
"""

import json
import logging
import os
import re
import resource
import signal
import sys

SECONDS = 1.0
MEMORY = 4 << 30


HUGE = re.compile(r"\^[\s{(]*-?\d{6}|\d{6}\s*!|(\d+)[\s})]*\^[\s{(]*(\d+)[\s})]*\^")
"""An exponent or a factorial of six digits; a power in an exponent. To compute it would only use the time up."""


def feasible(answer: str) -> str:
    """What an answer says after its last huge expression: "$2^{10^9}$ ends with 6. The answer is $6$."; "" where that
    is nothing, or the answer itself."""
    end = max((match.end() for match in HUGE.finditer(answer)), default=None)
    if end is None:
        return re.sub(r"(?<!\\)\.(\s{0,3}\$)", r"\1", answer)
    sentence = re.search(r"\$[^$]*?[.\n]|\n", answer[end:])
    return feasible(answer[end + sentence.end() :]) if sentence else ""


def compare(gold: str, answer: str) -> tuple[str | None, bool, str | None]:
    from math_verify import parse, verify

    # Without the library's own limits, which are alarms of wall time.
    a, b = (parse(text, parsing_timeout=None) for text in (gold, answer))
    equal = bool(a and b and verify(a, b, timeout_seconds=None))
    return (str(b[-1]), equal, str(b[0])) if b else (None, False, None)


def child(pairs: list[list[str]], out: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for gold, answer in pairs:
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        try:
            text = feasible(answer)
            verdict = compare(gold, text) if text else None
        except Exception:  # noqa: BLE001 - whatever a made-up expression raises in the library
            verdict = None
        signal.setitimer(signal.ITIMER_PROF, 0)
        os.write(out, (json.dumps(verdict) + "\n").encode())


def main() -> None:
    logging.disable(logging.WARNING)  # the library warns that its own limits are off
    compare("\\boxed{1}", "\\boxed{x+1}")  # what it loads when it is first used is loaded once, before the children
    pairs, verdicts = json.load(sys.stdin), 0
    while verdicts < len(pairs):
        out_of, into = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(out_of)
            try:
                child(pairs[verdicts:], into)
            finally:
                os._exit(0)
        os.close(into)
        with os.fdopen(out_of, encoding="utf-8") as lines:
            for line in lines:
                print(line, end="", flush=True)
                verdicts += 1
        os.waitpid(pid, 0)
        if verdicts < len(pairs):
            print("null", flush=True)
            verdicts += 1


if __name__ == "__main__":
    main()
