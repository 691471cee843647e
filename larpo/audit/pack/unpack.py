"""A pack opened again, on a machine that never saw the run: a project with its history, its outputs and a DVC cache.

The pack is a stranger's. Nothing in it is executed, no name leads out of the folder, and what is not as its checksums
and dvc.lock say is refused before the folder appears.
"""

import hashlib
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from larpo.audit.pack import BUNDLE, CHECKSUMS, FORMAT, METADATA, PACK, README, Facts
from larpo.audit.pack.allowed import Allowed
from larpo.audit.pack.bundle import clone_bundle
from larpo.config import yaml12
from larpo.errors import UserError, one_line
from larpo.hashing import dvc_hash, dvc_object, file_hash
from larpo.workspace.dvc import own_cache
from larpo.workspace.dvc_lock import LOCK, LockedNode, read_lock
from larpo.workspace.git import isolated_git

TOP = frozenset({PACK, README, METADATA, BUNDLE, CHECKSUMS})
BELOW = ("run", "audit")
KEPT = Path(".larpo/pack")
"""Where pack.json and the sender's audit lie in an unpacked run."""
# Git's and DVC's own folders are made here and never taken from a pack.
OWN = frozenset({".git", ".dvc", ".larpo"})
# What a commit may hold in .dvc/: a cache or config.local from there would be believed.
COMMITTED_DVC = frozenset({"config", ".gitignore", "plots"})
ALREADY = "expected a folder that does not exist or is empty"


@dataclass
class Unpacked:
    """The run's folder, and what it lacks."""

    folder: Path
    commit: str
    files: int
    facts: Facts
    absent: list[str] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    shut: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        left = {x.path for x in self.facts.left_out}
        lines = [f"not in the pack: {p}" + (" (left out by its sender)" if p in left else "") for p in self.absent]
        lines += [f"needed to run again: {x.path} ({x.why})" for x in self.facts.needed]
        lines += [f"not as in the commit: {path}" for path in self.uncommitted]
        lines += [f"not opened: {path} (no output, declared data, judgement or code)" for path in self.shut]
        lines = [*lines, f"{self.folder}: commit {self.commit[:12]}, {self.files} files, every byte as dvc.lock says"]
        return [one_line(line) for line in lines]


@contextmanager
def open_pack(file: Path) -> Iterator[Path]:
    """The folder of the run in a pack, unpacked for as long as the block lasts."""
    with tempfile.TemporaryDirectory(prefix="larpo-pack-") as scratch:
        yield unpack(file, Path(scratch) / "run").folder


def unpack(file: Path, folder: Path) -> Unpacked:
    """Open a pack as the new `folder`, which appears whole or not at all.

    Raises
    ------
    UserError
        Not a pack, a name that leads elsewhere, or bytes that are not what checksums or dvc.lock say.
    """
    folder = Path(os.path.abspath(folder))
    if folder.is_symlink() or (folder.exists() and (not folder.is_dir() or any(folder.iterdir()))):
        raise UserError(f"{folder}: {ALREADY}")
    if not file.is_file():
        raise UserError(f"{file}: not found; expected a file that `larpo pack` made")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        try:
            members = _extract(file, scratch / "members")
        except (tarfile.TarError, ValueError, OverflowError, EOFError) as error:
            raise UserError(f"{file}: not a pack, or damaged ({error})") from None
        facts = _facts(file, scratch / "members")
        clone_bundle(scratch / "members" / BUNDLE, scratch / "clone", facts.commit)
        project = scratch / "clone" / facts.folder
        _check_project(project, scratch / "clone", facts)
        opened = Unpacked(folder / facts.folder, facts.commit, len(members), facts)
        _place(scratch / "members", members, project, opened)
        _keep(scratch / "members", members, project)
        os.replace(scratch / "clone", folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return opened


def check_name(name: str) -> PurePosixPath:
    """A member's name as a path below the pack's top.

    Raises
    ------
    UserError
        Absolute, with `..`, into .git, .dvc or .larpo, or nothing that a pack holds.
    """
    parts = name.split("/")
    strange = any(ord(c) < 32 or c in "\\\x7f" for c in name) or any(0xD800 <= ord(c) < 0xE000 for c in name)
    if (
        not name
        or strange
        or len(name) > 1000
        or any(part in ("", ".", "..") or part.rstrip(" .") != part for part in parts)
    ):
        raise UserError(f"{name!r}: not a name that a pack may hold")
    known = name in TOP if len(parts) == 1 else parts[0] in BELOW
    if not known or OWN & {part.casefold() for part in parts} or any(len(part) > 255 for part in parts):
        raise UserError(f"{name!r}: not a name that a pack may hold")
    return PurePosixPath(name)


def _extract(file: Path, target: Path) -> dict[str, str]:
    """Write the members below `target`; name → md5. Each has the sha256 that the pack's list says."""
    md5s: dict[str, str] = {}
    sums: dict[str, str] = {}
    with tarfile.open(file, "r:") as tar:
        for member in tar:
            # Not `extract`: nothing but plain bytes is wanted, whatever kind, owner or mode a member says it has.
            if not member.isreg() or member.issparse():
                raise UserError(f"{file}: {member.name!r} is not a plain file; a pack holds nothing else")
            place = target / check_name(member.name)
            if member.name in md5s:
                raise UserError(f"{file}: {member.name!r} is in it twice")
            md5, sha = hashlib.md5(), hashlib.sha256()
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with open(place, "xb") as out:
                    source = tar.extractfile(member)
                    while block := source.read(1 << 20):
                        out.write(block)
                        md5.update(block)
                        sha.update(block)
            except (FileExistsError, NotADirectoryError):
                raise UserError(f"{file}: {member.name!r} collides with another name in it") from None
            md5s[member.name], sums[member.name] = md5.hexdigest(), sha.hexdigest()
    if CHECKSUMS not in sums or PACK not in sums or BUNDLE not in sums:
        raise UserError(f"{file}: not a pack, or cut short ({CHECKSUMS}, {PACK} or {BUNDLE} is missing)")
    try:
        lines = (target / CHECKSUMS).read_text("utf-8").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{file}: {CHECKSUMS} is damaged") from None
    stated = {name: sha for sha, _, name in (line.partition("  ") for line in lines)}
    for name in [*stated, *sums]:
        if name != CHECKSUMS and stated.get(name) != sums.get(name):
            why = "missing" if name not in sums else "not in its list" if name not in stated else "damaged"
            raise UserError(f"{file}: {name} is {why} (by {CHECKSUMS}); ask for the file again")
    return md5s


def _facts(file: Path, members: Path) -> Facts:
    """pack.json; it may have been written by anyone."""
    try:
        tree = json.loads((members / PACK).read_text("utf-8"))
        if isinstance(tree, dict) and tree.get("format") != FORMAT:
            found = f"format {tree.get('format')!r}, expected {FORMAT!r}"
            raise UserError(f"{file}: {found}; use the larpo that made it")
        facts = Facts.model_validate(tree, strict=True)
    except ValueError as error:
        raise UserError(f"{file}: {PACK} is not what `larpo pack` writes ({one_line(error)[:120]})") from None
    if facts.folder:
        check_name(f"run/{facts.folder}")
    return facts


def _check_project(project: Path, clone: Path, facts: Facts) -> None:
    """The commit has a DVC project where pack.json says, with nothing of DVC's but its configuration."""
    if not (project / ".dvc").is_dir():
        raise UserError(f"commit {facts.commit[:12]}: no .dvc folder in {facts.folder or 'its top'}")
    prefix = f"{facts.folder}/" if facts.folder else ""
    for path in isolated_git(clone, "ls-files", "-z").decode("utf-8", "replace").split("\0"):
        inside = path.removeprefix(f"{prefix}.dvc/")
        if (inside != path and inside.split("/")[0] not in COMMITTED_DVC) or path.split("/")[0] == ".larpo":
            raise UserError(f"commit {facts.commit[:12]}: holds {path}, which would be believed; not opened")


def _place(members: Path, md5s: dict[str, str], project: Path, opened: Unpacked) -> None:
    """Move what of run/ may be opened into the project, fill its cache, and note in `opened` what is absent,
    uncommitted or stays shut. Every output has to have the hash of dvc.lock."""
    lock = members / "run" / LOCK
    nodes = read_lock(lock) if lock.is_file() else {}
    if not nodes:
        raise UserError(f"run/{LOCK}: not in the pack")
    params = members / "run/params.yaml"
    allowed = Allowed(nodes.values(), yaml12.read(params) if params.is_file() else None)
    inside = {name[4:]: md5 for name, md5 in md5s.items() if name.startswith("run/")}
    objects, opened.absent = _objects(nodes, inside)
    for left in opened.facts.left_out:  # their files' hashes are known all the same
        if left.path in opened.absent and left.files:
            objects[dvc_hash(left.files)] = dvc_object(left.files)
    cache = project / ".dvc/cache/files/md5"
    for md5, content in objects.items():
        place = cache / md5[:2] / md5[2:]
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            place.write_bytes(content)
        else:
            shutil.copyfile(members / "run" / content, place)
        place.chmod(0o444)
    own_cache(project)
    for path, md5 in inside.items():
        target, kind = project / path, allowed.kind(path)
        if kind is None:
            opened.shut.append(path)
            continue
        try:
            if kind in ("frame", "code") and not (target.is_file() and file_hash(target) == md5):
                opened.uncommitted.append(path)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(members / "run" / path, target)
        except OSError as error:  # a file of the commit where a folder is needed, or the reverse
            raise UserError(f"run/{path}: does not fit the commit ({error.strerror})") from None
        target.chmod(0o644)


def _objects(nodes: dict[str, LockedNode], found: dict[str, str]) -> tuple[dict[str, bytes | str], list[str]]:
    """md5 → content, or path below run/, of what the cache has to hold; and outputs that are not in the pack."""
    objects: dict[str, bytes | str] = {}
    absent = []
    for node in nodes.values():
        for path, entry in node.outs.items():
            inside = {name[len(path) + 1 :]: md5 for name, md5 in found.items() if name.startswith(f"{path}/")}
            if path not in found and not inside:
                absent.append(path)
                continue
            listing = inside if entry.md5.endswith(".dir") else {}
            md5 = dvc_hash(listing) if listing else found.get(path)
            if md5 != entry.md5:
                raise UserError(f"{path} of {node.name}: not what {LOCK} records (expected {entry.md5}, found {md5})")
            if listing:
                objects[md5] = dvc_object(listing)
            objects |= {found[p]: p for p in ([f"{path}/{name}" for name in listing] or [path])}
    return objects, absent


def _keep(members: Path, md5s: dict[str, str], project: Path) -> None:
    kept = project / KEPT
    kept.mkdir(parents=True)
    (project / KEPT.parent / ".gitignore").write_text("*\n", "utf-8")
    for name in md5s:
        if name == PACK or name.startswith("audit/"):
            target = kept / name
            target.parent.mkdir(exist_ok=True)
            shutil.move(members / name, target)
