"""Node `inputs`: what the run takes from outside, resolved and recorded, so that a change of it is seen as any other.

A record per section of params.yaml, in data/inputs, on which the nodes that read the section depend: files and folders
by content, hub models and datasets by commit, packages by version, own code by the content of its files. DVC runs this
node each time; a record whose things have not changed is the same bytes, and runs nothing again. Nothing is downloaded
and no own code is imported. A source with fewer prompts than the run asks for is refused here, before any node of it.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from larpo.benchmarks import build_benchmark
from larpo.config.params import Params
from larpo.config.sections import SourceParams
from larpo.errors import ParameterError, at
from larpo.hashing import HashMemory, digest
from larpo.models.resolve import resolve
from larpo.registry import is_own, own_files
from larpo.rewards import parts
from larpo.sources import hub, provenance
from larpo.sources.enough import check_enough
from larpo.workspace.dvc_lock import recorded_file
from larpo.workspace.files import write_json
from larpo.workspace.progress import say
from tasks.frame.node import SCRATCH, Node, command

HOME = Path("data/inputs")
Record = list[provenance.Source]


def main() -> None:
    """Write data/inputs: policy.json, prompts.json, …, sft/NAME.json, benchmarks/NAME.json, retrieval/NAME.json."""
    with Node("inputs") as node:
        memory = HashMemory(SCRATCH / "inputs.hashes.json")
        home = node.out("inputs")
        (home / "benchmarks").mkdir(parents=True)
        every: Record = []
        for name, make in Recorder(node.params, memory).sections().items():
            before = recorded(name)
            record = sorted(make(), key=lambda source: source["key"])
            write_json(home / f"{name}.json", record)
            every += record
            for source in record if before is not None else []:
                if source not in before and source["key"] in {one["key"] for one in before}:
                    say(f"{node.stage}: {source['key']}: {source['name']} is not what it was")
        memory.save()
        node.note(sources=[provenance.with_licence(source) for source in every])
        node.rows(read=len(every), written=len(every))
        if not node.keep_if_unchanged():
            check_enough(node.params)


def recorded(name: str) -> Record | None:
    """A record as it was made before, here or where the run's dvc.lock comes from; None where there is none."""
    content = recorded_file(HOME, f"{name}.json")
    return None if content is None else json.loads(content)


class Recorder:
    """Makes the records of a run's parameters."""

    def __init__(self, params: Params, memory: HashMemory):
        self.params, self.memory = params, memory

    def sections(self) -> dict[str, Callable[[], Record]]:
        """Name of a record → what makes it."""
        p = self.params
        found: dict[str, Callable[[], Iterator[provenance.Source]]] = {
            "policy": lambda: self.model("policy.model", p.policy.model, p.policy.revision, "policy"),
            "prompts": lambda: self.prompts("prompts", p.prompts, "prompts"),
            "engine": lambda: self.code("engine.name", p.engine.name),
            "reward": self.reward,
            "score": self.score,
            "lists": self.lists,
            "train": lambda: self.code("train.objective", p.train.objective),
        }
        for name, sft in p.sft.items():
            found[f"sft/{name}"] = lambda n=name, s=sft: self.prompts(f"sft.{n}.data", s.data, f"sft/{n}")
        for name in p.benchmarks:
            found[f"benchmarks/{name}"] = lambda n=name: self.benchmark(n)
        for name in p.retrieval:
            found[f"retrieval/{name}"] = lambda n=name: self.retrieval(n)
        return {name: (lambda m=make: list(m())) for name, make in found.items()}

    def model(self, key: str, name: str, revision: str | None, record: str) -> Iterator[provenance.Source]:
        with at(key, "params.yaml"):
            source = resolve(name, revision).record(self.memory.tree_hash)
            yield {"key": key} | self.committed(source, key, record)

    def data(self, key: str, name: str, record: str) -> Iterator[provenance.Source]:
        """A dataset: a file, a folder, or a name on the hub."""
        with at(key, "params.yaml"):
            if Path(name).exists():
                yield {"key": key} | provenance.local(name, self.memory.tree_hash)
            elif Path(f"{name}.dvc").is_file():
                raise ParameterError("", f"{name}: not here; DVC tracks it: `dvc pull {name}` or `dvc checkout {name}`")
            elif name.startswith((".", "/")) or name.count("/") != 1:
                raise ParameterError("", f"{name}: not found; expected a file, a folder or a hub dataset (owner/name)")
            else:
                yield {"key": key} | self.committed(provenance.of_hub(name, "dataset", None, None), key, record)

    def committed(self, source: provenance.Source, key: str, record: str) -> provenance.Source:
        """A record with its commit, where it is one of the hub."""
        if source["kind"] != "hub":
            return source
        asked = {"key": key, **{k: source[k] for k in ("name", "kind", "type", "revision")}}
        before = (s["version"] for s in recorded(record) or [] if s.items() >= asked.items())
        commit = hub.commit_of(
            source["name"], source["type"], source["revision"], next(before, None), lambda line: say(f"inputs: {line}")
        )
        return source | {"version": commit}

    def code(self, key: str, name: str) -> Iterator[provenance.Source]:
        """Nothing for a thing of this project; own code by the content of its files."""
        if not is_own(name):
            return
        files = {path: self.memory.file_hash(file) for path, file in own_files(name).items()}
        if not files:
            raise ParameterError(key, f"{name}: no such module here and none installed", "params.yaml")
        yield {"key": key} | provenance.record(name, "code", None, digest(files, length=32), files=files)

    def prompts(self, key: str, section: SourceParams, record: str) -> Iterator[provenance.Source]:
        yield from self.code(f"{key}.source", section.source)
        if section.source == "reasoning_gym":
            yield {"key": f"{key}.source"} | provenance.package("reasoning-gym")
        elif section.dataset is not None and section.source != "sums":
            yield from self.data(f"{key}.dataset", section.dataset, record)
        elif not is_own(section.source):
            yield {"key": f"{key}.source"} | provenance.generated(f"prompts: {section.source}")

    def reward(self) -> Iterator[provenance.Source]:
        section = self.params.reward
        if section.model is not None:
            yield from self.model("reward.model", section.model, section.revision, "reward")
        pairs = {f"reward.checks.{name}": data for name, data in section.checks.items()}
        if section.train is not None:
            pairs["reward.train.data"] = section.train.data
        for key, data in pairs.items():
            if data.data is not None:
                yield from self.data(f"{key}.data", data.data, "reward")
            else:
                yield {"key": key} | provenance.generated(f"pairs: {data.source}")

    def score(self) -> Iterator[provenance.Source]:
        for name, _ in parts(self.params.score):
            yield from self.code("score.reward", name)

    def lists(self) -> Iterator[provenance.Source]:
        section = self.params.lists
        yield from self.code("lists.recipe", section.recipe)
        if section.negatives == "related":
            yield from self.model("lists.related_model", section.related_model, None, "lists")

    def benchmark(self, name: str) -> Iterator[provenance.Source]:
        """Its data, and the files that its options name."""
        key, entry = f"benchmarks.{name}", self.params.benchmarks[name]
        yield from self.code(f"{key}.benchmark", entry.benchmark)
        own = is_own(entry.benchmark)
        data = entry.data if own else getattr(build_benchmark(self.params, name), "source", None)
        if data is not None:
            yield from self.data(f"{key}.data", data, f"benchmarks/{name}")
        for option, value in entry.options.items():
            if isinstance(value, str) and Path(value).exists():
                yield from self.data(f"{key}.options.{option}", value, f"benchmarks/{name}")

    def retrieval(self, name: str) -> Iterator[provenance.Source]:
        key, entry = f"retrieval.{name}", self.params.retrieval[name]
        yield from self.model(f"{key}.model", entry.model, entry.revision, f"retrieval/{name}")
        for what in ("corpus", "queries"):
            yield from self.data(f"{key}.{what}", getattr(entry, what), f"retrieval/{name}")


if __name__ == "__main__":
    command(main)
