"""A stranger's repository and graph, read without their settings.

Git and DVC do what the configuration of a folder says: a promisor remote, a file-system monitor, a filter or a hook is
a program, DVC's site cache holds pickles, and a replacement shows one object under another's name. So neither ever
works in a stranger's folder. Of the repository the objects are copied, their ids computed anew, into one with settings
of its own; of the graph the files that declare it.
"""

import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from larpo.config import yaml12
from larpo.errors import UserError
from larpo.workspace.git import GitError, isolated_git

ID = re.compile(r"[0-9a-f]{40}([0-9a-f]{24})?")
REF = re.compile(r"ref: (refs/[\w.+@=-]+(?:/[\w.+@=-]+)+)")
BRANCH = "refs/heads/run"


def is_plain(path: Path, inside: Path) -> bool:
    """A file below `inside` that no link leads to or out of it."""
    return path.is_file() and not path.is_symlink() and path.resolve().is_relative_to(inside.resolve())


def sanitised(folder: Path, commits: Iterable[str], home: Path) -> Path | None:
    """A copy, below `home`, of the history of HEAD and of `commits` in the repository that `folder` lies in.

    Returns
    -------
    The folder in the copy that stands for `folder`, empty; None where it lies in no repository that can be copied.

    Raises
    ------
    UserError
        Its objects are damaged, or Git refuses them.
    """
    top = next((place for place in (folder, *folder.parents) if (place / ".git").exists()), None)
    if top is None or not (top / ".git").is_dir() or (top / ".git").is_symlink():
        return None  # a file that names another folder: what lies there is not the stranger's to show
    theirs = top / ".git"
    head = _head(theirs)
    if head is None:
        return None
    view = home / "view.git"
    _empty(view, len(head), "--bare")
    for entry in (theirs / "objects").iterdir():
        # Not `info`: alternates lead elsewhere, and a commit-graph could tell of other parents.
        if entry.is_dir() and not entry.is_symlink() and re.fullmatch("[0-9a-f]{2}|pack", entry.name):
            shutil.rmtree(view / "objects" / entry.name, ignore_errors=True)
            (view / "objects" / entry.name).symlink_to(entry.resolve())
    if is_plain(theirs / "shallow", theirs):
        lines = (theirs / "shallow").read_text("utf-8", "replace").split()
        (view / "shallow").write_text("".join(f"{line}\n" for line in lines if ID.fullmatch(line)), "utf-8")
    copy = copied(view, head, commits, home / "repository")
    if is_plain(theirs / "config", theirs):  # read as a file, not as the configuration of anything
        read = ("config", "--file", str(theirs / "config"), "--no-includes", "--get", "remote.origin.url")
        if url := isolated_git(home, *read, check=False).decode("utf-8", "replace").strip():
            isolated_git(copy, "config", "remote.origin.url", url)  # to be shown; nothing is fetched from it
    place = copy / folder.relative_to(top)
    place.mkdir(parents=True, exist_ok=True)
    return place


def copied(source: Path, head: str, commits: Iterable[str], target: Path) -> Path:
    """The new repository `target` with the history of `head`, its branch, and of those of `commits` that `source` has;
    the id of every object is computed from its content.

    Raises
    ------
    UserError
        Objects that are damaged or that Git refuses.
    """
    wanted = [head, *(c for c in sorted(set(commits)) if isolated_git(source, "cat-file", "-t", c, check=False))]
    revisions = "".join(f"{commit}\n" for commit in wanted).encode()
    _empty(target, len(head))
    try:
        # What a partial clone lacks stays away: it is never fetched.
        packing = ("pack-objects", "--revs", "--stdout", "--quiet", "--missing=allow-any", "--delta-base-offset")
        objects = isolated_git(source, *packing, given=revisions)
        isolated_git(target, "index-pack", "--stdin", "--fsck-objects", given=objects)
        if (source / "shallow").is_file():
            shutil.copyfile(source / "shallow", target / ".git/shallow")
        isolated_git(target, "update-ref", BRANCH, head)
    except GitError as error:
        raise UserError(f"its Git objects are damaged, or refused by Git ({error.reason[-200:]})") from None
    return target


def _empty(folder: Path, length: int, *options: str) -> None:
    kind = "sha256" if length == 64 else "sha1"
    folder.mkdir(parents=True)
    none = folder.parent / "no-template"
    none.mkdir(exist_ok=True)
    isolated_git(folder, "init", "-q", "-b", "run", f"--template={none}", f"--object-format={kind}", *options)


def _head(git: Path) -> str | None:
    """The commit of HEAD, from files: Git itself would read the configuration first."""
    text = _line(git / "HEAD", git)
    for _ in range(5):
        if ID.fullmatch(text):
            return text
        if (named := REF.fullmatch(text)) is None or ".." in text:
            return None
        text = _line(git / named[1], git) or _packed(git, named[1])
    return None


def _line(path: Path, git: Path) -> str:
    return path.read_text("utf-8", "replace")[:1000].strip() if is_plain(path, git) else ""


def _packed(git: Path, name: str) -> str:
    if not is_plain(git / "packed-refs", git):
        return ""
    lines = (line.split(" ") for line in (git / "packed-refs").read_text("utf-8", "replace").splitlines())
    return next((line[0] for line in lines if line[1:] == [name]), "")


def stand_in(folder: Path, home: Path) -> Path:
    """A project below `home` with the files of `folder` that declare its graph, and DVC's settings from nobody."""
    target = home / "graph"
    (target / ".dvc/tmp").mkdir(parents=True)
    site = str(home / "site").replace('"', "")
    (target / ".dvc/config").write_text(
        f'[core]\n    no_scm = true\n    analytics = false\n    site_cache_dir = "{site}"\n'
    )
    graph = yaml12.read(folder / "dvc.yaml")
    for name in {"dvc.yaml", "params.yaml", *_files(graph)}:
        source, place = folder / name, target / name
        if is_plain(source, folder) and place.resolve().is_relative_to(target.resolve()):
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)
    return target


def _files(tree: Any) -> set[str]:
    """Files that `vars` and `params` in dvc.yaml name, wherever they stand."""
    found: set[str] = set()
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if key in ("vars", "params") and isinstance(value, list):
            for entry in value:
                names = (
                    [entry.partition(":")[0]] if isinstance(entry, str) else entry if isinstance(entry, dict) else []
                )
                found |= {name for name in map(str, names) if Path(name).suffix and len(name) < 500}
        found |= _files(value)
    return found
