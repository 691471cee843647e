r"""What the final answer of a text is, and when two answers are equal: one idea for rewards, benchmarks and votes.

    final_answer(r"So it is \boxed{\frac{3}{4}}, put within \boxed{}.")  →  r"\frac{3}{4}"
    final_number("The distance is 5 * 3 = 15km")  →  "15"         number("3 1/2")  →  "3.5"

A number has one spelling (`spell`): digits with a decimal point, or p/q where there is no such decimal; equal numbers
have equal spellings, at any length. Percent signs, currencies and units are no part of a number's value. "3 dozen" is
spelled "3 × 12" and equals 3, of dozens, as well as 36 (`same_number`): of 8,792 solutions of GSM8K 18 end with such a
word beside the answer, in 17 of them the gold answer counts in it.
"""

import re
from collections.abc import Iterator
from fractions import Fraction

# --- the part of a text that holds the answer

_TAGS = "think|thinking|thought|reasoning|reflection|scratchpad"
_REASONING = re.compile(rf"<({_TAGS})>.*?</\1>", re.DOTALL | re.IGNORECASE)
_OPENED, _CLOSED = (re.compile(rf"<{slash}({_TAGS})>", re.IGNORECASE) for slash in ("", "/"))
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_NEGATED = re.compile(r"(?:(?:^|[\n(\[{,:]|\bis)\s{0,3}[-−–]|[=$]\s{0,3}[-−–]\s?)\Z")  # "- " may open a list
_WORD = re.compile(r"[^\s$]{1,200}")
_DOUBLED = re.compile(r"(?<!\\)\\\\(?=(?:[dtc]?frac|sqrt|text|pi|infty|left|right|cdot|times|boxed|fbox)(?![A-Za-z]))")
"""A backslash written twice, as in JSON, before what is a command of LaTeX and no word in a new line."""


def without_reasoning(text: str) -> str | None:
    """A response without its chain of thought in tags, commands of LaTeX with one backslash; None where the reasoning
    never ends. A template may have opened it, so what stands before a closing tag alone is reasoning too."""
    text = _REASONING.sub(" ", _DOUBLED.sub(r"\\", text))
    if closed := list(_CLOSED.finditer(text)):
        text = text[closed[-1].end() :]
    return None if _OPENED.search(text) else text


def boxes(text: str) -> Iterator[str | None]:
    r"""Contents of every `\boxed{…}`, `\fbox{…}` and `\boxed x` that has some, the last first; None for one that was
    cut off. An empty one, or a bare command in a sentence, repeats the instruction. Time grows with the text, not with
    its square: a response may be nothing but boxes that are never closed."""
    ends = _closing(text) if "{" in text else {}
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text.startswith("{", start):
            end = ends.get(start)
            if end is None:
                yield None
            elif content := text[start + 1 : end].strip():
                negated = _NEGATED.search(text, max(0, match.start() - 8), match.start())
                sum_inside = re.search(r"[-+]", content)
                yield content if not negated else f"-({content})" if sum_inside else f"-{content}"
        elif token := _WORD.match(text, start):
            word = token[0].rstrip(".,;:!?")
            if word and not re.fullmatch(r"\W+|[^\W\d_]{2,}.*", word):
                yield word


def _closing(text: str) -> dict[int, int]:
    """Where each brace that is closed is opened → where it is closed."""
    opened: list[int] = []
    ends = {}
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        if match[0] == "{":
            opened.append(match.start())
        elif match[0] == "}" and opened:
            ends[opened.pop()] = match.start()
    return ends


def without_echoes(text: str) -> str:
    """A text without the empty boxes that repeat the instruction."""
    return re.sub(rf"{_BOX.pattern}\{{\s*\}}", " ", text)


def braced(text: str) -> str | None:
    """The inside of the braces that `text` starts with; None where they are never closed."""
    depth = 0
    for match in re.finditer(r"\\.|[{}]", text, re.DOTALL):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0 and match[0] == "}":
            return text[1 : match.start()]
    return None


def final_answer(text: str) -> str | None:
    """The content of the last box that has some, outside the reasoning; None without one."""
    rest = without_reasoning(text)
    return None if rest is None else next(boxes(rest), None)


# --- numbers

_UNIT = (
    "mi|ft|in|yd|miles?|met(?:er|re)s?|feet|foot|inch(?:es)?|yards?|lbs?|oz|grams?|tons?|pounds?|"
    "s|secs?|seconds?|mins?|minutes?|hrs?|h|hours?|days?|weeks?|months?|years?|yrs?|lit(?:er|re)s?|gal|"
    "gallons?|mph|kph|kmh|KB|MB|GB|TB|deg|degrees?|rad|USD|EUR|GBP|usd|eur|dollars?|"
    "cents?|euros?|percent|pct|points?|units?|people|persons?|am|pm|st|nd|rd|th|"
    "(?:[kcmμµndh]|da)?(?:m|g|L|l)|[kMG]?(?:W|Wh|J|Hz)|[mk]?V|[kh]?Pa|kN|k?cal|m?mol|[mμµn]s|cc|°\\s?[CFK]|[℃℉]"
)
_UNITS = rf"(?:(?:sq\.?|square|cu\.?|cubic)\ )?(?:{_UNIT})s?(?:\^?[23](?![\d.]))?"
_MULTIPLES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "lakh": 10**5, "million": 10**6, "crore": 10**7}
_MULTIPLES |= {"billion": 10**9, "trillion": 10**12}
_CURRENCY = r"[$€£¥₹¢%‰°]"
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_SPACED = re.compile(r"(?<![\d.,^])(?<!\d )(\$\s?)?(\d{1,3}(?: \d{3})+)(?![\d,]| \d)(\s?[$%])?")
_BEFORE_LAST, _AFTER_LAST = re.compile(r"(?:\b(?:is|are|of)|=)\s{1,3}\Z"), re.compile(r"[.!]?\s{0,3}(?:\n|\Z)")
_UNCLEAR = " 1/0 "
"""A number that may be read in two ways, or is none: it has no value, and the one before it is not taken instead."""
_TOKEN = re.compile(
    rf"""(?<![\w.^])(?P<sign>(?:(?<==)\s*-\ +|[-+])?)(?:\$(?P<minus>-?))?
    (?:(?:(?P<whole>\d+)\ )?(?P<top>-?(?:{_DIGITS}))\ ?/\ ?(?P<bottom>-?(?:{_DIGITS}))(?!/)
      |(?P<base>{_DIGITS})(?:[eE](?P<e>[-+]?\d+)|\ ?[*x]\ ?10\^(?P<ten>[-+]?\d+)|\^(?P<power>[-+]?\d+))?)
    (?:(?:{_UNITS})(?![A-Za-z])|(?:\ *|-)(?P<times>(?i:{"|".join(_MULTIPLES)}))s?(?![A-Za-z]))?(?!\w|\.\d|\^)""",
    re.VERBOSE,
)
_VULGAR = {c: f"{n}/{d}" for c, n, d in zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", "112131234151357", "233445555668888", strict=True)}
_RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
WORDS = r"\\(?:text(?:bf|it|rm|tt)?|math(?:rm|bf|it|sf)|mbox|operatorname|boldsymbol)\s*\{([^{}]*)\}"
_WRITTEN = [
    # LaTeX and typography → the plain spelling; what is no number becomes a letter, so that no digit in it counts
    (r"[\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\u00ad]", ""),  # of no width
    (r"[−–﹣－]", "-"),
    (r"\\(?:times|cdot)|[×·]", "*"),
    (r"\{,\}|,\\!", ","),
    (r"(?<=\d)(?:\\[,!;: ]|[\u2009\u202f\u00a0'’]|~)(?=\d{3}(?!\d))", ""),
    (r"(?<![\d.,])(\d{1,3}(?:\.\d{3})+),(\d{1,2})(?![\d,])", lambda m: f"{m[1].replace('.', '')}.{m[2]}"),
    (r"(?<![\d.,])(?<!\d )(\d{1,3}(?: \d{3})+),(\d{1,2})(?![\d,])", lambda m: f"{m[1].replace(' ', '')}.{m[2]}"),
    (r"(?<![\d.,])\d{1,2}(?:,\d\d)+,\d{3}(?![\d,])", lambda m: m[0].replace(",", "")),
    (r"[\u0e00-\u0e7f\u3000-\u30ff\u3400-\u9fff\uac00-\ud7af]", " "),
    (r"[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda m: "^" + m[0].translate(_RAISED)),
    (r"\\[,!;:> ]|\\q?quad|[\u2009\u202f\u00a0]|~", " "),
    (r"\\(?:left|right|displaystyle|big|Big)(?![A-Za-z])", ""),
    (WORDS, r" \1 "),
    (r"\^\{?\s*(?:st|nd|rd|th)(?![A-Za-z])\s*\}?", " "),
    (r"\^\{?\\circ\}?|\\degree", "°"),
    (r"\\([$%#&])|\\([()\[\]])", r"\1 "),
    (r"(?:US|CA|AU)\$|Rs\.?|USD|EUR|[€£¥₹]", "$"),
    (r"(?<![A-Za-z0-9])_{1,3}|_{1,3}(?![A-Za-z0-9{])|(?<!\w)\*{1,3}(?=[^\s*])|(?<=[^\s*])\*{1,3}(?!\w| ?\d)", " "),
    (r"\^\{\s*([-+]?\d+)\s*\}", r"^\1"),
    (r"[\^_]\{[^{}]*\}", "^x"),
    (
        r"((?:\d|=)\s*)?(?:\\sqrt(?:\[[^\]]*\])?\s*(?:\{[^{}]*\}|\w)|\\pi(?![A-Za-z])|π|√\s*\d*)",
        lambda m: _UNCLEAR if m[1] else "x",
    ),
    (r"(?<!\d)\d+(?::| : )\d+(?:\d|:)*|(?<![\d/])\d+/\d+/[\d/]+|(?<!\d)\d{4}-\d\d?-\d\d?(?!\d)", _UNCLEAR),
    (r"(?:±|\\pm(?![A-Za-z])|\+/-)\s*\$?\.?\d[\d.,]*", _UNCLEAR),
    (r"""\d\s?['′]\s?\d+(?:\.\d+)?\s?(?:"|″|'')""", _UNCLEAR),
    (r"(?<![\d.,])\d+,\d{1,2}(?![\d,])|\d(?:[kKMB]|[mb]n)(?!\w)", _UNCLEAR),
]
_WRITTEN = [(re.compile(pattern), by) for pattern, by in _WRITTEN]
_FRACTION = re.compile(r"\\[dtc]?frac\s*(?=[{\d])")
_BEFORE_FRACTIONS = 10
_LARGEST_POWER = 999
_LONGEST_PART = 2_000  # digits of a fraction's part
_DEEPEST = 20  # fractions in fractions


def number(text: str) -> str | None:
    """The number that a text is, spelled; None where it is none, or several: "1,234.50" → "1234.5", "-$5" → "-5"."""
    plain = _plain(text, alone=True)
    tokens = list(_TOKEN.finditer(plain))
    if len(tokens) != 1:
        return None
    rest = plain[: tokens[0].start()] + " " + plain[tokens[0].end() :]
    rest = re.sub(rf"(?<![A-Za-z])(?:{_UNITS})(?![A-Za-z])|{_CURRENCY}|[./^*\s{{}}()]|\^?\d(?<=\^\d)", "", rest)
    return None if rest else _spelled(tokens[0])


def final_number(text: str) -> str | None:
    """The number that is a response's final answer, spelled: that in its last box, or else its last one; None where
    there is none."""
    rest = without_reasoning(text)
    if rest is None:
        return None
    for content in boxes(rest):
        return boxed_number(content)
    spelled = [_spelled(match) for match in _TOKEN.finditer(_plain(_BOX.sub(" ", rest)))]
    return spelled[-1] if spelled else None


def boxed_number(content: str | None) -> str | None:
    """The one number in a box, after its last equality sign and beside words; None where there are several or letters
    that stand for numbers."""
    if content is None:
        return None
    plain = re.split(r"=|≈|\\approx", _plain(content, alone=True))[-1]
    tokens = list(_TOKEN.finditer(plain))
    rest = plain[: tokens[0].start()] + " " + plain[tokens[0].end() :] if len(tokens) == 1 else "0"
    letter = r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])"
    digit = r"\d(?<!\^\d)(?<![A-Za-z]{2}[23])(?<! m[23])"  # that is no power and no square of a unit
    alone = not re.search(rf"{digit}|\\|(?<![A-Za-z])x(?![A-Za-z])|[,!]|[-+*]\s*{letter}|{letter}\s*[-+*]", rest)
    return _spelled(tokens[0]) if alone else None


def _plain(text: str, alone: bool = False) -> str:
    """Every notation in one: `3/4` for fractions, `-` for signs, `^` for powers; a fraction, root or constant that is
    no rational number is a letter, or has no value where it is an answer. `alone`: the text is one answer, no sentence.
    """
    for character, fraction in _VULGAR.items():
        text = re.sub(rf"(\d?)\s?{character}", lambda m, f=fraction: f"{m[1]} {f} " if m[1] else f" {f} ", text)
    for pattern, by in _WRITTEN[:_BEFORE_FRACTIONS]:
        text = pattern.sub(by, text)
    text = _without_frac(text.replace("⁄", "/"))
    for pattern, by in _WRITTEN[_BEFORE_FRACTIONS:]:
        text = pattern.sub(by, text)

    def joined(match: re.Match[str]) -> str:
        """Groups of three digits behind ordinary spaces. In a sentence "3 100" may be two numbers: one are those with
        several groups, a group that no number starts with ("2 000"), a currency, or a sentence that ends with it ("is
        9 500.")."""
        groups = match[2].split(" ")
        start, end = match.span()
        ends = _BEFORE_LAST.search(text, max(0, start - 6), start) and _AFTER_LAST.match(text, end)
        clear = alone or len(groups) > 2 or groups[1].startswith("0") or match[1] or match[3] or ends
        return f"{match[1] or ''}{''.join(groups)}{match[3] or ''}" if clear else _UNCLEAR

    return _SPACED.sub(joined, text)


def _without_frac(text: str, depth: int = 0) -> str:
    r"""`\frac{3}{4}`, `\frac34` and their kind as 3/4; a letter where one part is no number."""
    if depth > _DEEPEST:
        return " x"
    while match := next(iter(_FRACTION.finditer(text)), None):
        parts, end = [], match.end()
        for _ in range(2):
            rest = text[end:].lstrip()
            end = len(text) - len(rest)
            inside = braced(rest) if rest.startswith("{") else rest[:1]
            if inside is None or not rest:
                return text[: match.start()] + " x"
            parts.append(_without_frac(inside, depth + 1))
            end += len(inside) + 2 * rest.startswith("{")
        spelled = [number(part) for part in parts]
        before = text[: match.start()]
        made = "x"
        if None not in spelled and not re.search(r"[A-Za-z^]$", before):
            top, bottom = (values(part)[-1] for part in spelled)
            if bottom and max(map(len, spelled)) <= _LONGEST_PART:
                made = f"{'-' if top * bottom < 0 else ''}{abs((top / bottom).numerator)}/{(top / bottom).denominator}"
                made = f" {made} " if re.search(r"\d$", before) else f"{made} "
        text = before + made + text[end:]
    return text


def _spelled(match: re.Match[str]) -> str | None:
    """The value of a token in its one spelling."""
    negative = (match["sign"].strip() == "-") != (match["minus"] == "-")
    try:
        if match["top"] is not None:
            value = _fraction(match["top"]) / _fraction(match["bottom"])
            value += Fraction(match["whole"] or 0)
        else:
            value = _fraction(match["base"])
            if match["power"] is not None:
                if abs(int(match["power"])) * value.numerator.bit_length() > 20_000:
                    return None
                value **= int(match["power"])
            elif exponent := match["e"] or match["ten"]:
                if abs(int(exponent)) > _LARGEST_POWER:
                    return None
                value *= Fraction(10) ** int(exponent)
        word = f" × {_MULTIPLES[match['times'].lower()]}" if match["times"] else ""
        return spell(-value if negative else value) + word
    except (ZeroDivisionError, ValueError):
        return None  # also where it has more digits than Python converts, 4,300: no answer is that long


def values(spelled: str) -> list[Fraction]:
    """The value of a spelled number; behind it the product where a word multiplies it."""
    value, _, times = spelled.partition(" × ")
    return [Fraction(value), Fraction(value) * int(times)] if times else [Fraction(value)]


def same_number(a: str | None, b: str | None) -> bool:
    """Whether two spelled numbers are equal; one without a multiplying word may count in that of the other."""
    if a is None or b is None:
        return False
    (x, *larger), (y, *other) = values(a), values(b)
    return (larger or [x]) == (other or [y]) or (x == y and not (larger and other))


def _fraction(digits: str) -> Fraction:
    return Fraction(digits.replace(",", ""))


def spell(value: Fraction) -> str:
    """The one spelling of a number: 0.75 for 3/4, 1/3 where no decimal ends."""
    rest, twos, fives = value.denominator, 0, 0
    while rest % 2 == 0:
        rest, twos = rest // 2, twos + 1
    while rest % 5 == 0:
        rest, fives = rest // 5, fives + 1
    if rest != 1:
        return f"{value.numerator}/{value.denominator}"
    places = max(twos, fives)
    digits = str(abs(value.numerator) * 10**places // value.denominator).rjust(places + 1, "0")
    whole = digits if places == 0 else f"{digits[:-places]}.{digits[-places:]}"
    return ("-" if value < 0 else "") + whole
