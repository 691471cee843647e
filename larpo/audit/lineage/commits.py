"""What a commit held: files of the project's folder by their md5, read from Git's objects and not from the folder."""

import hashlib
from pathlib import Path

from larpo.errors import UserError
from larpo.workspace.git import GitError, git_bytes

BROKEN = "Git objects cannot be read"
CODE = ("larpo/", "tasks/", "flows/")


class Commit:
    """One commit of the repository around `folder`; paths are relative to `folder`. `blobs`: Git's ids of its files,
    which are the same wherever their content is."""

    def __init__(self, folder: Path | None, commit: str):
        """`folder` as `AuditedRun.repository` is."""
        if folder is None:
            raise UserError("the run lies in no Git repository of its own")
        self.folder, self.commit = folder, commit
        listed = self._git("ls-tree", "-r", "-z", commit, check=f"commit {commit[:12]} is not in this repository")
        self.blobs: dict[str, str] = {}
        for line in filter(None, listed.split(b"\0")):
            facts, _, name = line.partition(b"\t")
            mode, kind, blob = facts.split()
            if kind == b"blob" and mode != b"120000":
                self.blobs[name.decode("utf-8", "surrogateescape")] = blob.decode()
        self._md5: dict[str, str] = {}

    def _git(self, *arguments: str, check: str, given: bytes | None = None) -> bytes:
        try:
            return git_bytes(self.folder, *arguments, given=given)
        except GitError:
            raise UserError(f"{self.folder}: {check}") from None

    def files(self, path: str) -> dict[str, str]:
        """Name → md5 of a file (its name is then "") or of every file in a folder, relative to it; empty if absent."""
        if path in self.blobs:
            return {"": self._hashes([self.blobs[path]])[0]}
        inside = {n[len(path) + 1 :]: b for n, b in self.blobs.items() if n.startswith(f"{path}/")}
        return dict(zip(inside, self._hashes(list(inside.values())), strict=True))

    def content(self, path: str) -> bytes | None:
        """A file's bytes; None where the commit has none of that name."""
        return self._git("cat-file", "blob", self.blobs[path], check=BROKEN) if path in self.blobs else None

    def _hashes(self, blobs: list[str]) -> list[str]:
        new = [b for b in dict.fromkeys(blobs) if b not in self._md5]
        if new:
            names = "\n".join(new).encode() + b"\n"
            rest = self._git("cat-file", "--batch", given=names, check=BROKEN)
            for blob in new:
                head, _, rest = rest.partition(b"\n")
                size = int(head.split()[2])
                self._md5[blob] = hashlib.md5(rest[:size]).hexdigest()
                rest = rest[size + 1 :]
        return [self._md5[b] for b in blobs]
