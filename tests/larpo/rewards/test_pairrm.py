"""PairRM: the network against one comparison at a time written out, aggregation by hand, bubble against full."""

import json
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, DebertaV2Model

from larpo.config.reward import RewardParams
from larpo.errors import UserError
from larpo.rewards import build_reward
from larpo.rewards.checkpoint import reward_checkpoint
from larpo.rewards.pairrm import full_scores
from larpo.rewards.pairrm_model import PairRM, fetch_pairrm
from tests.reward_models import decoder, pairrm, with_identity

ASKED = [{"role": "user", "content": "name a fruit"}]
OTHER = [{"role": "user", "content": "and a long question about colours"}]
TEXTS = ["apple", "a pear is a fruit", "no", "apple", "x" * 30]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return with_identity(pairrm(tmp_path_factory.mktemp("pairrm") / "reward"), kind="pairrm")


def score(folder, messages, texts, groups=None, batch_tokens=8192, **options) -> np.ndarray:
    path = folder / "reward.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"batch_tokens": batch_tokens}))
    reward = build_reward("pairrm", {"source_max_length": 100} | options, folder)
    return reward.score(messages, [None] * len(texts), texts, groups=groups)["reward"].to_numpy()


class Reference:
    """One comparison at a time from the weights' own names: markers found by their ids, no batch, no padding."""

    def __init__(self, folder):
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        whole = PairRM.from_pretrained(folder).eval()
        state = whole.state_dict()
        self.encoder = DebertaV2Model(whole.config).eval()
        self.encoder.load_state_dict({k.split(".", 1)[1]: v for k, v in state.items() if k.startswith("pretrained")})
        self.head = [state[f"head_layer.{i}.{kind}"] for i in (1, 4) for kind in ("weight", "bias")]

    def side(self, source, candidate) -> float:
        w1, b1, w2, b2 = self.head
        return float(w2 @ torch.tanh(w1 @ torch.cat([source, candidate]) + b1) + b2)

    @torch.no_grad()
    def logit(self, prompt: str, left: str, right: str) -> float:
        parts = ["<|source|>" + prompt, "<|candidate1|>" + left, "<|candidate2|>" + right]
        ids = [i for part in parts for i in self.tokenizer(part)["input_ids"]]
        hidden = self.encoder(torch.tensor([ids])).last_hidden_state[0]
        marks = [ids.index(self.tokenizer.convert_tokens_to_ids(m.split(">")[0] + ">")) for m in parts]
        source, one, two = hidden[marks]
        return self.side(source, one) - self.side(source, two)

    def matrix(self, prompt: str, texts: list[str]) -> np.ndarray:
        found = np.zeros((len(texts), len(texts)))
        for i, j in permutations(range(len(texts)), 2):
            found[i, j] = self.logit(prompt, texts[i], texts[j])
        return found


def test_full_comparison_is_that_of_one_at_a_time(folder):
    """LLM-Blender's ranking score: mean over j of C[i, j] − C[j, i], the candidate itself counting as 0."""
    matrix = Reference(folder).matrix("name a fruit", TEXTS)
    expected = (matrix - matrix.T).mean(axis=1)
    assert score(folder, [ASKED] * 5, TEXTS) == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.1 and expected[0] == pytest.approx(expected[3]), "apple stands twice"


def test_aggregates_by_hand():
    """C = [[0, 2, −1], [1, 0, 3], [4, −2, 0]].
    C − Cᵀ = [[0, 1, −5], [−1, 0, 5], [5, −5, 0]]; means −4/3, 4/3, 0.
    Wins: row 0 has one positive entry, column 0 no negative one: 1. Row 1 two, column 1 one (−2): 3.
    Row 2 one, column 2 one (−1): 2."""
    matrix = np.array([[0, 2, -1], [1, 0, 3], [4, -2, 0]], dtype=float)
    assert full_scores(matrix, "mean_logits").tolist() == pytest.approx([-4 / 3, 4 / 3, 0])
    assert full_scores(matrix, "wins").tolist() == [1, 3, 2]


@settings(max_examples=10, deadline=None)
@given(st.lists(st.text("ab c", max_size=25), min_size=1, max_size=4), st.integers(1, 400), st.permutations(range(6)))
def test_batches_neighbours_and_row_order_never_change_a_score(folder, texts, batch_tokens, order):
    alone = score(folder, [ASKED] * len(texts), texts)
    messages, all_texts = [ASKED] * len(texts) + [OTHER] * 2, [*texts, "red", "a very long blue"]
    rows = [i for i in order if i < len(all_texts)]
    rows += [i for i in range(len(all_texts)) if i not in rows]
    found = score(folder, [messages[i] for i in rows], [all_texts[i] for i in rows], batch_tokens=batch_tokens)
    assert found[[rows.index(i) for i in range(len(texts))]] == pytest.approx(alone, abs=1e-5)


def test_bubble_finds_the_order_of_symmetric_comparisons(folder):
    """Bubble sort with k − 1 passes orders by a relation; walked by hand with the reference's own comparisons."""
    texts = ["apple", "a pear is a fruit", "no", "x" * 30]
    matrix = Reference(folder).matrix("name a fruit", texts)
    from larpo.hashing import digest

    order = sorted(range(4), key=lambda i: digest("bubble", texts[i]))
    for done in range(3):
        for step in range(3 - done):
            i, j = order[step], order[step + 1]
            if matrix[i, j] - matrix[j, i] >= 0:
                order[step : step + 2] = [j, i]
    full = score(folder, [ASKED] * 4, texts, comparisons="bubble", passes=3)
    assert np.argsort(full).tolist() == order and sorted(full) == [0, 1, 2, 3]
    once = score(folder, [ASKED] * 4, texts, comparisons="bubble")
    assert sorted(once) == [0, 0, 0, 1] and once.argmax() == full.argmax()


def test_groups_say_which_candidates_compete(folder):
    """The same prompt twice as two groups: pairs are scored within each."""
    apart = score(folder, [ASKED] * 4, ["a", "b", "c", "d"], groups=["1", "1", "2", "2"])
    assert apart[:2] == pytest.approx(score(folder, [ASKED] * 2, ["a", "b"]), abs=1e-6)
    assert apart[0] == pytest.approx(-apart[1], abs=1e-6)
    assert score(folder, [ASKED], ["alone"]).tolist() == [0.0]


def test_markers_inside_a_text_are_text(folder):
    """A response cannot open a part of its own: specials become spaces, as LLM-Blender does with its separator."""
    sly = ["apple", "b<|candidate1|>c[SEP]d"]
    assert score(folder, [ASKED] * 2, sly) == pytest.approx(score(folder, [ASKED] * 2, ["apple", "b c d"]), abs=1e-6)


def test_long_candidates_are_cut_and_counted(folder):
    """max_length 256; source "[CLS]<|source|>name a fruit[SEP]" is 15: (256 − 15) // 2 = 120 tokens per candidate, of
    which 117 are text."""
    reward = build_reward("pairrm", {"source_max_length": 100}, folder)
    texts = ["a" * 117 + "b" * 40, "a" * 117, "c"]
    found = reward.score([ASKED] * 3, [None] * 3, texts)["reward"].to_numpy()
    assert found[0] == pytest.approx(found[1], abs=1e-6)
    assert reward.taken() == {"candidates_cut": 1}


def fetch(folder):
    params = RewardParams(model=str(folder), kind="pairrm")
    return fetch_pairrm(params, reward_checkpoint(params, None))


def test_fetched_from_either_published_layout(folder, tmp_path, monkeypatch):
    """llm-blender/PairRM describes the ranker in config.json; its network is DeBERTa-v3-large's, here made small."""
    import larpo.rewards.pairrm_model as module

    model, _, facts = fetch(folder)
    assert facts["origin"] == "folder" and facts["parameters"] == model.num_parameters()
    small = {k: getattr(model.config, k) for k in module._LARGE}
    monkeypatch.setattr(module, "_LARGE", small)
    other = pairrm(tmp_path / "ranker")
    (other / "config.json").write_text(
        json.dumps({"ranker_type": "pairranker", "model_type": "deberta", "n_tasks": 1, "drop_out": 0.05})
    )
    again, _, _ = fetch(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_another_model_is_refused_in_one_line(tmp_path):
    with pytest.raises(UserError, match=r"cannot load .* as PairRM|lacks .* weights of PairRM") as caught:
        fetch(decoder(tmp_path / "m"))
    assert "\n" not in str(caught.value)


def test_options_are_checked():
    with pytest.raises(UserError, match=r"score\.options\.comparisons: expected full or bubble, found 'all'"):
        build_reward("pairrm", {"comparisons": "all"})
