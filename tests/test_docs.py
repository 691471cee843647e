"""The documentation is true: every name, path, parameter, node, link and command in it exists.

Commands are executed by tests/test_docs_commands.py (`make test-docs`). Conventions, for PAGES. In backticks
    larpo.x.y, tasks.x, flows.x     imports and resolves
    larpo/x.py, studies/NAME.yaml   exists; words in capitals and `*` stand for any name
    train.objective, lists.memory: all, sample.gold=true     a key of params.yaml, the value one that it takes
    sample@s                        a node of dvc.yaml
and indented blocks hold commands, parameters and examples (test_docs_examples.py).
"""

import importlib.util
import pkgutil
import re
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, get_args, get_origin

import pytest
import yaml
from pydantic import TypeAdapter, ValidationError

from larpo.config.page import page as page_of_params
from larpo.config.params import Params
from larpo.config.sections import Section
from larpo.engines import ENGINES
from larpo.lists.recipes import RECIPES
from larpo.objectives import OBJECTIVES
from larpo.rewards import REWARDS
from larpo.sources.prompts import SOURCES
from larpo.studies.expand import load_study, names
from larpo.studies.text import STATEMENTS
from larpo.workspace.overrides import changed_params
from tests.conftest import ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
IDS = [page.relative_to(ROOT).as_posix() for page in PAGES]
GENERATED = re.compile(r"docs/findings\.md|studies/results/|report/")
STAGES = yaml.safe_load((ROOT / "dvc.yaml").read_text("utf-8"))["stages"]
NAMED = {
    "prompts.source": SOURCES,
    "engine.name": ENGINES,
    "score.reward": REWARDS,
    "lists.recipe": RECIPES,
    "train.objective": OBJECTIVES,
}


def indented(line: str) -> bool:
    return line.startswith("    ")


def prose(page: Path) -> str:
    return "\n".join(line for line in page.read_text("utf-8").splitlines() if not indented(line))


def spans(page: Path) -> list[str]:
    return [" ".join(found.split()) for found in re.findall(r"`([^`]+)`", prose(page))]


def blocks(page: Path, heading: str | None = None) -> Iterator[str]:
    """Indented blocks of a page, or of one section of it, without their indentation."""
    text = page.read_text("utf-8")
    if heading is not None:
        (text,) = re.findall(rf"^{re.escape(heading)}\n(.*?)(?=^#|\Z)", text, re.M | re.S)
    for found in re.findall(r"(?:^(?: {4}.*)?\n)*^ {4}.*\n(?:^(?: {4}.*)?\n)*", text, re.M):
        yield textwrap.dedent(found).strip("\n") + "\n"


def field_of(dotted: str) -> Any:
    """The annotation, with its constraints, of a dotted key of params.yaml; raises KeyError where there is none."""
    kind: Any = Params
    for part in dotted.split("."):
        options = [a for a in get_args(kind) if a is not type(None)] if get_origin(kind) is UnionType else [kind]
        kind = options[0]
        while get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        if isinstance(kind, type) and issubclass(kind, Section):
            field = kind.model_fields[part]
            kind = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
        elif get_origin(kind) is dict:
            kind = get_args(kind)[1]
        elif kind is not Any:
            raise KeyError(part)
    return kind


def wrong_parameter(dotted: str, value: str | None, page: Path) -> str | None:
    try:
        kind = field_of(dotted)
    except KeyError as error:
        return f"{dotted}: no {error} in params.yaml"
    if value is None or "…" in value or re.search(r"\b[A-Z]{2,}\b", value):
        return None
    found = yaml.safe_load(value)
    # What the page's own example adds stands there in quotes.
    if dotted in NAMED and found not in NAMED[dotted] and f'"{found}"' not in page.read_text("utf-8"):
        return f"{dotted}: {found!r} is in no registry"
    try:
        TypeAdapter(kind).validate_python(found)
    except ValidationError as error:
        if reasons := [e["msg"] for e in error.errors() if e["type"] != "missing"]:
            return f"{dotted}: {found!r}: {reasons[0]}"
    return None


def wrong_path(text: str) -> str | None:
    if GENERATED.match(text):
        return None
    kind = re.match(r"data/([^/]+)(/|$)", text)
    if kind and kind[1] not in ("samples", "README.md"):
        outs = [out for stage in STAGES.values() for out in stage.get("do", stage).get("outs", [])]
        made = {(out if isinstance(out, str) else next(iter(out))).split("/")[1] for out in outs}
        return None if kind[1] in made else f"{text}: no node makes data/{kind[1]}"
    pattern = re.sub(r"\b[A-Z][A-Z-]+\b", "*", text.split(":")[0])
    return None if list(ROOT.glob(pattern.rstrip("/"))) else f"{text}: not found"


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_name_in_backticks_exists(page):
    wrong: list[str | None] = []
    for span in spans(page):
        inside = page.parent.name == "data" and re.match(r"(?!larpo)[a-z_]+/", span)
        place = f"data/{span}" if inside else span
        parameter = re.fullmatch(r"~?([a-z_]+(?:\.[\w-]+)*)(?:(?::\s+|=)(.+))?", span)
        if re.fullmatch(r"(larpo|tasks|flows)(\.\w+)+", span) and not span.endswith(".py"):
            try:
                pkgutil.resolve_name(span)
            except (ImportError, AttributeError) as error:
                wrong.append(f"{span}: {error}")
        elif re.match(r"(larpo|tasks|flows|tests|configs|studies|docs|requirements|data|report)/\S*$", place):
            wrong.append(wrong_path(place))
        elif node := re.fullmatch(r"([a-z_]+)@\S+", span):
            if not {"foreach", "matrix"} & set(STAGES.get(node[1], {})):
                wrong.append(f"{span}: no such node")
        elif parameter and ("." in parameter[1] or parameter[2]) and not re.search(r"\.(\w{2,4}l?|parquet)$", span):
            section = parameter[1].split(".")[0]
            if section in Params.model_fields:
                wrong.append(wrong_parameter(parameter[1], parameter[2], page))
    assert not [w for w in wrong if w]


def slugs(page: Path) -> set[str]:
    """Anchors of a page as GitHub makes them, and those that it names itself."""
    text = page.read_text("utf-8")
    heads = [re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^#+ (.*)$", text, re.M)]
    return {*heads, *re.findall(r'<a name="([^"]+)">', text)}


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if GENERATED.match(file.relative_to(ROOT).as_posix()) and not file.exists():
            continue
        assert file.exists(), target
        assert not anchor or anchor in slugs(file), target


def commands() -> list[list[str]]:
    found = []
    for page in PAGES:
        for block in blocks(page):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"(make|dvc|larpo|prefect|python) ", line):
                    found.append(shlex.split(line, comments=True))
    return found


def test_every_command_exists_and_takes_what_it_is_given(tmp_path, monkeypatch):
    from typer.main import get_command

    from flows.audit import larpo_audit
    from flows.cli import app
    from flows.run import larpo
    from flows.serve import deployments
    from flows.study import larpo_study

    for name in ("params.yaml", "data", "larpo"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "my-model").mkdir()
    (tmp_path / "mine.jsonl").write_text(
        "".join(f'{{"prompt": "{i} + 7 =", "answer": "{i + 7}"}}\n' for i in range(99))
    )
    monkeypatch.chdir(tmp_path)
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    deployed = [d.name for d in deployments(ROOT)]
    flows = {flow.name: set(flow.parameters.properties) for flow in (larpo, larpo_study, larpo_audit)}
    for words in commands():
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[:2] == ["python", "-m"]:
            assert importlib.util.find_spec(words[2]), words
        elif words[0] == "larpo":
            known = get_command(app).commands[words[1]]
            options = {o for p in known.params for o in (*p.opts, *p.secondary_opts)}
            given = {w.partition("=")[0] for w in words if w.startswith("--")}
            assert words[1] == "score" or given <= options, words
            if words[1] == "exp":
                overlays, overrides = (
                    [words[i + 1] for i, w in enumerate(words) if w == option] for option in ("--with", "-S")
                )
                shipped = [ROOT / overlay for overlay in overlays if (ROOT / overlay).exists()]
                assert changed_params(tmp_path, overrides=overrides, overlays=shipped) or "--iterations" in words, words
            if words[1] == "study":
                assert words[2] in ("list", "all", "NAME", *names(ROOT / "studies")), words
        elif words[:3] == ["prefect", "deployment", "run"]:
            flow, _, deployment = words[3].partition("/")
            given = {words[i + 1].partition("=")[0] for i, w in enumerate(words) if w == "--param"}
            assert given <= flows[flow], words
            assert deployment in (names(ROOT / "studies") if flow == "larpo-study" else deployed), words
    assert {words[0] for words in commands()} == {"make", "dvc", "larpo", "prefect", "python"}


def test_the_page_of_parameters_is_what_its_command_makes():
    text = (ROOT / "docs/params.md").read_text("utf-8")
    assert text == page_of_params(), "run `python -m larpo.config.page`"
    keys = {cells[0].strip("`"): cells[-1] for cells in rows(ROOT / "docs/params.md", r"`.*`")}
    assert all(keys.values()) and {"seed", "prompts.per_iteration", "benchmarks.NAME.generate.samples"} <= set(keys)


def rows(page: Path, first: str) -> list[list[str]]:
    """Cells of the table rows whose first cell matches."""
    found = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in page.read_text("utf-8").splitlines()]
    return [cells for cells in found if cells and re.fullmatch(first, cells[0])]


def test_the_map_is_complete():
    """Every table, figure, study, objective of the paper and finding has its row, and the right studies in it."""
    page, home = ROOT / "docs/paper.md", ROOT / "studies"
    text, studies = page.read_text("utf-8"), {name: load_study(home, name) for name in names(home)}
    parts = {row[0]: row[1] for row in rows(page, r"(Table|Figure) \d[a-c]?")}
    assert {f"Table {i}" for i in range(1, 8)} <= set(parts)
    assert {"Figure 2", "Figure 4a", "Figure 4b", "Figure 4c", "Figure 5", "Figure 6"} <= set(parts)
    for name, study in studies.items():
        if study.paper is None:
            assert f"(../studies/{name}.yaml)" in text, name
            continue
        assert f"(../studies/{name}.yaml)" in parts[study.paper.partition(" (")[0]], name
    assert all(f"`train.objective: {name}`" in text for name in ("pairwise", "contrastive", "lambdarank", "listmle"))
    findings = {row[0]: row for row in rows(page, r"F\d+")}
    for finding, statement in STATEMENTS.items():
        tested = sorted(name for name, study in studies.items() if finding in study.claims)
        assert findings[finding][1:] == [statement, ", ".join(tested)]


@pytest.mark.parametrize("page", PAGES, ids=IDS)
def test_parameters_shown_as_yaml_are_right(page):
    """Blocks that are sections of params.yaml: every key exists, every value is one that it takes."""
    for block in blocks(page):
        try:
            found = yaml.safe_load(block)
        except yaml.YAMLError:
            continue
        if not isinstance(found, dict) or not set(found) <= set(Params.model_fields):
            continue
        for section, value in found.items():
            try:
                TypeAdapter(field_of(section)).validate_python(value)
            except ValidationError as error:
                wrong = [e for e in error.errors() if e["type"] != "missing"]
                assert not wrong, f"{section}: {wrong[0]['loc']}: {wrong[0]['msg']}"
