"""A finding in words: what it says, and the paragraph that its numbers make."""

from typing import Any

from larpo.studies.rule import Procedure
from larpo.studies.spec import Study

STATEMENTS = {
    "F1": "Recall grows with N for retriever and language model alike",
    "F2": "Low temperature is better at N = 1, high temperature at N > 10",
    "F3": "Contrastive is at least as good as pairwise",
    "F4": "Listwise is better than pairwise and at least as good as contrastive",
    "F5": "The harder the negatives, the better the final model",
    "F6": "Temperature has an optimum: lower is harder and better, until diversity collapses",
    "F7": "Longer lists help, with diminishing returns",
    "F8": "Memory of earlier iterations helps, and more of it helps more",
    "F9": "SFT lifts greedy accuracy and Recall@N most; preference optimisation on top lifts both more",
    "F10": "LARPO is better than each baseline",
    "F11": "A stronger reward makes a better model",
}
"""The paper's findings in our words (shared by several of its sections)."""


def shown(entry: dict[str, Any] | None, percent: bool) -> str:
    """`31.2 [25.9, 36.5]`; without an interval the value alone, `–` without a value."""
    if entry is None:
        return "–"
    scale = 100 if percent else 1
    ends = [None if entry.get(k) is None else scale * entry[k] for k in ("low", "high")]
    form = "{:.1f}" if percent else "{:.3g}"
    text = form.format(scale * entry["value"])
    return text if None in ends else f"{text} [{form.format(ends[0])}, {form.format(ends[1])}]"


def paragraph(study: Study, results: dict[str, Any], finding: str) -> str:
    """One paragraph: verdict, each claim's effect with its interval and rule, the paper's own numbers, and what all
    this does not show."""
    found = results["findings"][finding]
    sentences = [f"{STATEMENTS[finding]}: {found['verdict']}."]
    if found["problem"]:
        sentences.append(f"Nothing is decided: {found['problem']}.")
    sentences += [claim_sentence(claim, found) for claim in found["claims"]]
    sentences.append(rule_sentence(results, found))
    against = [c["says"] for c in found["claims"] if c["paper"] and c["paper"]["says"] == "contradicts"]
    if against:
        sentences.append(f"The paper's own numbers contradict it in: {'; '.join(against)}.")
    return " ".join(s for s in [*sentences, *limits(study, results, found)] if s)


def claim_sentence(claim: dict[str, Any], found: dict[str, Any]) -> str:
    """`Contrastive above pairwise: 5.8 [3.2, 8.4] points, better (8 seeds, p = .001).`"""
    says = claim["says"][0].upper() + claim["says"][1:]
    if claim["problem"]:
        return f"{says}: {claim['problem']}."
    if claim["look"] is None:
        why = "judged only where the finding holds" if claim["secondary"] else "undecided"
        return f"{says}: {shown(claim['difference'], claim['percent'])}, {why}."
    n, unit = claim["difference"]["n"], " points" if claim["percent"] else ""
    over = "items of one run" if claim["over"] == "items" and n == 1 else f"{n} seeds"
    asked = f", asked to be no worse by {100 * claim['margin']:g} points" if claim["expects"] == "not_worse" else ""
    verdict = "same within the margin" if claim["verdict"] == "same" else claim["verdict"]
    text = f"{says}: {shown(claim['difference'], claim['percent'])}{unit}, {verdict} ({over}{asked}, {p_text(claim)})"
    return text + ("." if claim["secondary"] or claim["holds"] is not None else "; the interval leaves both open.")


def p_text(claim: dict[str, Any]) -> str:
    """The p-value behind a verdict; of evidence against a claim with Holm's correction beside it."""
    if claim["holds"] is not False:
        return f"p = {claim['p']:.3g}"
    corrected = f", {claim['against_holm']:.3g} after Holm" if "against_holm" in claim else ""
    return f"p = {claim['against']:.3g}{corrected}"


def paper_text(claim: dict[str, Any]) -> str:
    """`+2.0: agrees, within their error of 4.2`: a claim on the paper's own numbers."""
    paper = claim["paper"]
    if paper is None:
        return "–"
    small = "" if paper["clear"] else ", too small for its standard error"
    error = f" ± {paper['error']:.1f}" if paper["error"] else ""
    return f"{paper['difference']:+.2f}{error}: {paper['says']}{small}"


def rule_sentence(results: dict[str, Any], found: dict[str, Any]) -> str:
    rule = results["rule"]
    if Procedure[results["procedure"]] == Procedure.ANYTIME:
        how = f"an e-value that may be read after any seed, level {rule['level']:g}"
    elif rule["over"] == "items":
        how = f"intervals over items at level {rule['level']:g}, seeds as a second level"
    else:
        looks = " and ".join(map(str, rule["looks"]))
        how = f"t intervals over seeds, looks declared at {looks} seeds, each at level {rule['level']:g}"
    return f"The rule: {how}; a difference matters from {100 * rule['margin']:g} points on."


def limits(study: Study, results: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """What the numbers do not show."""
    scale, claims = results["scale"], found["claims"]
    out = []
    if scale == "cpu":
        out.append("It speaks of a small model and its task; whether it carries over to a language model is not shown.")
    if not study.scales[scale].seeded:
        out.append("All seeds start from one model, so another start is not in the intervals.")
    if len(results["seeds"]) == 1 and results["rule"]["over"] == "items":
        out.append("It is one training run: what another seed gives is not in the intervals.")
    if any(c["verdict"] == "undecided" and not c["secondary"] for c in claims):
        out.append("Undecided is not equal: the interval holds differences that matter and none.")
    if any(c["verdict"] == "same" for c in claims):
        out.append("Same is no more than that: a difference below the margin is not ruled out.")
    shared = {cell["same_as"] for cell in results["cells"].values() if cell.get("same_as")}
    if shared:
        out.append(f"Some arms train as {', '.join(sorted(shared))} do: that evidence counts once.")
    return out
