"""Iterative refinement: a policy is asked to revise the answer that it gave."""

import pandas as pd

REVISE = "Check your answer for mistakes. Then give your revised answer to the same question, in the same form."


def revised(messages: pd.Series, answers: pd.Series) -> list[list[dict[str, str]]]:
    """Each conversation continued by the answer given and the request to revise it."""
    return [
        [*asked, {"role": "assistant", "content": answer}, {"role": "user", "content": REVISE}]
        for asked, answer in zip(messages, answers, strict=True)
    ]
