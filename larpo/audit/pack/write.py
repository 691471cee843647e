"""A finished run packed: what goes in, what is left out, and the file itself."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from larpo.audit.lineage.commits import CODE, Commit
from larpo.audit.open import PARAMS, AuditedRun
from larpo.audit.pack import BUNDLE, CHECKSUMS, METADATA, PACK, README, Facts, LeftOut, Needed
from larpo.audit.pack.allowed import FRAME, Allowed
from larpo.audit.pack.bundle import write_bundle
from larpo.audit.pack.crate import describe
from larpo.benchmarks.judge import store_folder
from larpo.errors import UserError, one_line
from larpo.hashing import digest, dvc_hash
from larpo.workspace.clone import named_paths
from larpo.workspace.dvc_lock import LOCK, read_yaml
from larpo.workspace.git import isolated_git
from larpo.workspace.progress import progress

CARD = ("report/audit.json", "report/audit.html")
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf")
GIB = 2**30

READ_ME = """# A run of LARPO

Commit {commit}, {nodes} nodes. Made by `larpo pack`; opened by

    larpo unpack THIS_FILE FOLDER        # checks every byte, makes a project with Git history and DVC cache
    larpo audit FOLDER

Without LARPO: `tar xf`, `sha256sum -c checksums.sha256`, `git clone -b run repository.bundle`. What the nodes made lies
in run/ under its own name; run/dvc.lock holds its hashes, run/report/index.html opens in a browser. Nothing in here has
to be executed to be read.
"""


@dataclass
class Member:
    """One file of the pack: from `source`, or with `content`."""

    name: str
    source: Path | None = None
    content: bytes = b""
    size: int = 0
    md5: str = ""
    sha256: str = ""
    within: Path | None = None  # a folder that no link above the file may lead out of

    def hashed(self) -> Member:
        md5, sha, size = hashlib.md5(), hashlib.sha256(), 0
        with self.open() as file:
            while block := file.read(1 << 20):
                md5.update(block)
                sha.update(block)
                size += len(block)
        self.size, self.md5, self.sha256 = size, md5.hexdigest(), sha.hexdigest()
        return self

    def open(self) -> IO[bytes]:
        if self.source is None:
            return io.BytesIO(self.content)
        outside = self.within and not self.source.resolve().is_relative_to(self.within.resolve())
        if self.source.is_symlink() or outside:
            raise UserError(f"{self.source}: a symbolic link; a pack holds files, replace it by what it points to")
        return open(self.source, "rb")


@dataclass
class Packed:
    """What `pack` did: the file, its size and sha256, and what a reader should know."""

    path: Path
    size: int
    sha256: str
    files: int
    facts: Facts

    def lines(self) -> list[str]:
        facts = self.facts
        lines = [f"left out: {x.path} ({_mib(x.size or 0)}); its hash stays in {LOCK}" for x in facts.left_out]
        lines += [f"not in the pack, needed to run again: {x.path} ({x.why})" for x in facts.needed]
        lines += [f"uncommitted, packed as it lies: {path}" for path in facts.uncommitted]
        lines += [f"a manifest names commit {c[:12]}, which is in no history here" for c in facts.unknown_commits]
        lines += [f"{self.path}: {self.files} files, {_mib(self.size)}", f"sha256 {self.sha256}"]
        return [one_line(line) for line in lines]


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def pack(run: AuditedRun, out: Path, *, checkpoints: bool = True, data_limit: int = GIB) -> Packed:
    """Write `run` to the tar file `out`, which appears whole or not at all.

    Parameters
    ----------
    checkpoints
        False: outputs that hold a model's weights are left out and named.
    data_limit
        Bytes up to which a file or folder that parameters name, and neither Git nor a node has, is packed; a larger
        one, or one outside the run's folder, is named as needed.

    Raises
    ------
    UserError
        The run is not finished, an output is not there or not what dvc.lock records, or there is no commit.
    """
    if run.missing:
        raise UserError(f"{run.missing[0]}: not in {LOCK}, so the run is not finished; `dvc repro {run.missing[0]}`")
    if run.repository is None:
        raise UserError(
            f"{run.folder}: a pack holds the run's commits, and there is none here; `git init`, then commit"
        )
    members: dict[str, Member] = {}
    left_out = _outputs(run, members, checkpoints)
    with tempfile.TemporaryDirectory() as scratch:
        bundle = Path(scratch) / BUNDLE
        named = {c for manifest in run.manifests.values() if (c := manifest.git.commit)}
        head, unknown = write_bundle(run.repository, named, bundle)
        uncommitted, needed = _beside(run, members, head, data_limit)
        prefix = isolated_git(run.repository, "rev-parse", "--show-prefix").decode().strip().rstrip("/")
        facts = Facts(
            commit=head,
            folder=prefix,
            left_out=left_out,
            needed=needed,
            uncommitted=uncommitted,
            unknown_commits=unknown,
        )
        inside = [*_frame(run, facts), Member(BUNDLE, bundle), *_card(run)]
        inside = [member.hashed() for member in inside] + [members[name] for name in sorted(members)]
        sizes = {m.name: (m.size, m.sha256) for m in inside}
        inside.insert(2, Member(METADATA, content=describe(run, facts, sizes)).hashed())
        sums = "".join(f"{m.sha256}  {m.name}\n" for m in inside)
        inside.append(Member(CHECKSUMS, content=sums.encode()).hashed())
        sha256 = _write(inside, out)
    return Packed(out, out.stat().st_size, sha256, len(inside), facts)


def _outputs(run: AuditedRun, members: dict[str, Member], checkpoints: bool) -> list[LeftOut]:
    """Add every output, each checked against dvc.lock; returns what is left out."""
    left_out = []
    outputs = [(node, entry) for node in run.nodes for entry in node.outs.values()]
    for node, entry in progress(outputs, "pack: outputs checked", "bytes", lambda pair: pair[1].size or 1):
        place, name = run.folder / entry.path, f"{entry.path} of {node.name}"
        folder = entry.md5.endswith(".dir")
        if not (place.is_dir() if folder else place.is_file()):
            raise UserError(f"{name}: not there; `dvc checkout` or `dvc repro {node.name}`, then pack")
        files = [f"/{file}" for file in run.files(entry.path)] if folder else [""]
        # Of one's own run an output may lie on another disk; a stranger's link leads nowhere.
        within = None if run.own else run.folder
        places = {f"run/{entry.path}{file}": run.folder / f"{entry.path}{file}" for file in files}
        inside = [Member(name, place, within=within).hashed() for name, place in places.items()]
        listing = {m.name.removeprefix(f"run/{entry.path}/"): m.md5 for m in inside}
        if (md5 := dvc_hash(listing) if folder else inside[0].md5) != entry.md5:
            raise UserError(f"{name}: not what {LOCK} records (expected {entry.md5}, found {md5}); `dvc checkout`")
        if not checkpoints and any(file.endswith(WEIGHTS) for file in files):
            files = listing if folder else {}
            left_out.append(LeftOut(path=entry.path, md5=entry.md5, size=entry.size, files=files))
        else:
            members |= {member.name: member for member in inside}
    return left_out


def _beside(run: AuditedRun, members: dict[str, Member], head: str, data_limit: int) -> tuple[list[str], list[Needed]]:
    """Add what is neither output nor as committed: changed files, data of one's own, judges' replies.

    Returns the uncommitted files, and what a reader has to bring.
    """
    commit = Commit(run.repository, head)
    changed = isolated_git(run.repository, "diff", "--name-only", "-z", "--relative", "--diff-filter=d", head).decode()
    code = [path for path in run.sources if path.startswith(CODE) or path.endswith(".py")]
    beside = {path for path in changed.split("\0") if path} | {path for path in FRAME if (run.folder / path).exists()}
    for path in code:
        committed = commit.files(path)
        lying = run.files(path) if (run.folder / path).is_dir() else [""]
        places = {f"{path}/{file}" if file else path: committed.get(file) for file in lying}
        beside |= {place for place, md5 in places.items() if md5 != run.file_md5(run.folder / place)}
    uncommitted, tree = [], read_yaml(run.folder / PARAMS)
    allowed = Allowed(run.nodes, tree)
    for path in sorted(path for path in beside if allowed.kind(path) in ("frame", "code", "data")):
        member = Member(f"run/{path}", run.folder / path, within=run.folder).hashed()
        as_committed = commit.files(path).get("") == member.md5
        if not as_committed:
            uncommitted.append(path)
        if not as_committed or path in FRAME:
            members.setdefault(member.name, member)
    needed = []
    data = [run.folder / path for path in run.sources if path not in code]
    # What manifests name comes first: whether it exists here must not decide whether a reader is told of it.
    places = [*data, *run.given, *named_paths(tree, run.folder)]
    for place in dict.fromkeys(places):
        if (lack := _add_data(run, members, commit, place, data_limit)) is not None:
            needed.append(lack)
    for judge in run.params.judges.values():
        for folder in (run.folder / "judgements", store_folder()):
            for file in sorted(folder.glob(f"*-{digest(judge.model, length=6)}.jsonl")):
                name = f"run/judgements/{file.name}"
                members.setdefault(name, Member(name, file, within=folder).hashed())
    return uncommitted, needed


def _add_data(run: AuditedRun, members: dict[str, Member], commit: Commit, place: Path, limit: int) -> Needed | None:
    """Add a file or folder that parameters name; where it is not added, what has to be known of it."""
    if not place.is_relative_to(run.folder):
        return Needed(path=str(place), why="outside the run's folder")
    path = place.relative_to(run.folder).as_posix()
    made = [out for out in run.producer if f"{out}/".startswith(f"{path}/") or path.startswith(f"{out}/")]
    if made or path == ".":
        return None
    committed = commit.files(path)
    if not place.exists():
        return None if committed else Needed(path=path, why="not there any more")
    files = [f"{path}/{f}" for f in run.files(path)] if place.is_dir() else [path]
    files = [f for f in files if f[len(path) + 1 :] not in committed and f"run/{f}" not in members]
    size = sum((run.folder / f).stat().st_size for f in files)
    if size > limit:
        return Needed(path=path, why=f"{_mib(size)}, over the limit of {_mib(limit)}")
    allowed = Allowed(run.nodes, read_yaml(run.folder / PARAMS))
    files = [f for f in files if allowed.kind(f)]
    members |= {f"run/{f}": Member(f"run/{f}", run.folder / f, within=run.folder).hashed() for f in files}
    return None


def _frame(run: AuditedRun, facts: Facts) -> list[Member]:
    text = json.dumps(facts.model_dump(), indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    readme = READ_ME.format(commit=facts.commit, nodes=len(run.nodes))
    return [Member(PACK, content=text.encode()), Member(README, content=readme.encode())]


def _card(run: AuditedRun) -> list[Member]:
    """The audit's own files, where one was made: the sender's word, kept apart from what the reader's audit finds."""
    return [Member(f"audit/{Path(p).name}", run.folder / p) for p in CARD if (run.folder / p).is_file()]


class Hashed:
    """A file that hashes what passes through it."""

    def __init__(self, file: IO[bytes]):
        self.file, self.sha256 = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self.file.read(size)
        self.sha256.update(data)
        return data

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        return self.file.write(data)


def _write(members: list[Member], out: Path) -> str:
    """The tar file, written beside `out` and renamed; returns its sha256."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "xb") as file:
            hashed = Hashed(file)
            with tarfile.open(fileobj=hashed, mode="w|", format=tarfile.PAX_FORMAT) as tar:
                for member in progress(members, "pack: written", "bytes", lambda m: m.size + 1):
                    info = tarfile.TarInfo(member.name)
                    info.size, info.mode = member.size, 0o644  # no time, no owner: the same run, the same bytes
                    with member.open() as source:
                        tar.addfile(info, reader := Hashed(source))
                    if reader.sha256.hexdigest() != member.sha256:
                        raise UserError(f"{member.name}: changed while it was packed; pack again when nothing runs")
        os.replace(temporary, out)
        return hashed.sha256.hexdigest()
    finally:
        temporary.unlink(missing_ok=True)
