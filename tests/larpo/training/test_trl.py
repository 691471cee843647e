"""Objectives that TRL has too: its own trainers compute the loss of the same batch, and every weight's gradient.

Ours gets its log-probabilities from the plain logits of untouched copies of the two models. TRL has no RRHF and no
R-DPO; its `ld_alpha` (LD-DPO) discounts the tokens of the longer response, which is another method.
"""

import copy

import pytest
import torch
from torch import Tensor

from larpo.objectives import build
from tests.larpo.objectives.ranked_lists import make

ROWS = {
    "prompt": ["a b", "g", "c c c"],
    "chosen": [" c d e", " h", " d </s>"],
    "rejected": [" f", " a a b b", " e f g"],
}
SAME = ROWS | {"chosen": [" c d e", " h h a", " d d d"]}


@pytest.fixture
def models():
    """(policy, reference, tokenizer): two different random one-layer models over ten words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["<pad>", "</s>", *"abcdefgh"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>")
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        initializer_range=0.5,
        pad_token_id=0,
        bos_token_id=None,
        eos_token_id=1,
    )
    torch.manual_seed(0)
    return LlamaForCausalLM(config).float(), LlamaForCausalLM(config).float(), tokenizer


def sums(model, ids: Tensor, attention: Tensor, response: Tensor) -> Tensor:
    """(N,) log-probabilities of the response tokens, which `response` (N, T) marks."""
    logits = model(input_ids=ids, attention_mask=attention).logits[:, :-1]
    picked = logits.float().log_softmax(-1).gather(2, ids[:, 1:, None]).squeeze(2)
    return (picked * response[:, 1:]).sum(1)


def settings(folder, rows: int, **more) -> dict:
    return dict(
        output_dir=str(folder), per_device_train_batch_size=rows, bf16=False, use_cpu=True, report_to=[], **more
    )


def same_gradients(ours, theirs) -> None:
    for mine, yours in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, yours.grad, rtol=1e-4, atol=1e-5)


def theirs_and_ours(models, folder, kind: str, rows: dict, **options):
    """TRL's loss of `DPOTrainer` or `CPOTrainer`, its policy with gradients, our untouched policy and its batch."""
    import trl
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, reference, tokenizer = models
    ours, our_reference = copy.deepcopy(policy), copy.deepcopy(reference)
    n = len(rows["prompt"])
    trainer_class, config_class = (trl.DPOTrainer, trl.DPOConfig) if kind == "dpo" else (CPOTrainer, CPOConfig)
    trainer = trainer_class(
        model=policy,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(rows),
        args=config_class(**settings(folder, n, **options)),
        **({"ref_model": reference} if kind == "dpo" else {}),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    if kind == "dpo":
        columns = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    else:
        joined = CPOTrainer.concatenated_inputs(inputs, padding_value=0)
        response = joined["concatenated_labels"] != -100
        columns = joined["concatenated_input_ids"], joined["concatenated_attention_mask"], response

    def pairs(values: Tensor) -> Tensor:
        return values.reshape(2, n).T  # TRL's rows are chosen, chosen, …, rejected, …

    reference_logps = pairs(sums(our_reference, *columns)).detach() if kind == "dpo" else None
    batch = make(pairs(sums(ours, *columns)), reference_logps, lengths=pairs(columns[2][:, 1:].sum(1)))
    return theirs.detach(), trainer.model, batch, ours


PAIRS = [{key: value[row : row + 1] for key, value in ROWS.items()} for row in range(3)]
SIMPO, HINGE = {"loss_type": "simpo", "beta": 1.5, "cpo_alpha": 0.0}, {"loss_type": "hinge", "beta": 1.0}
ROW_TOKENS = [4, 2, 2]  # of the chosen responses, with the </s> that TRL appends where there is none


@pytest.mark.parametrize(
    ("kind", "rows", "options", "name", "params"),
    [
        ("dpo", ROWS, {"loss_type": "sigmoid", "beta": 0.3}, "dpo", {"beta": 0.3}),
        # TRL's `beta` of IPO is τ; both take mean log-ratios there.
        ("dpo", ROWS, {"loss_type": "ipo", "beta": 0.2}, "ipo", {"tau": 0.2}),
        # CPO's NLL: TRL averages over the tokens of the batch, we over a list's tokens and then over lists. The chosen
        # responses are equally long here, so that both are the same.
        ("cpo", SAME, {"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7}, "cpo", {"beta": 0.3, "nll_weight": 0.7}),
        # γ = 0.4 · 1.5 = 0.6: TRL takes the absolute margin, we take its ratio to β.
        ("cpo", SAME, SIMPO | {"simpo_gamma": 0.6}, "simpo", {"beta": 1.5, "gamma_beta_ratio": 0.4}),
        # TRL's CPO `hinge` at β = 1 is on log-probabilities, SLiC-HF's first term at δ = 1. For one pair
        # λ s_w = λ |y_w| · s̄_w, so with cpo_alpha = λ |y_w| it is the whole of SLiC-HF.
        ("cpo", SAME, HINGE | {"cpo_alpha": 0.0}, "slic_hf", {"delta": 1.0, "nll_weight": 0.0}),
        *[
            ("cpo", pair, HINGE | {"cpo_alpha": 0.1 * n}, "slic_hf", {"delta": 1.0, "nll_weight": 0.1})
            for pair, n in zip(PAIRS, ROW_TOKENS, strict=True)
        ],
    ],
)
def test_equal_to_trl(tmp_path, models, kind, rows, options, name, params):
    theirs, their_policy, batch, our_policy = theirs_and_ours(models, tmp_path, kind, rows, **options)
    ours = build(name, **params)(batch)
    ours.mean().backward()
    if len(ours) > 1:
        assert ours.std() > 0.1  # the three pairs differ, and so does the policy from its reference
        assert (len(batch.lengths[:, 0].unique()) == 1) == (kind == "cpo") and len(batch.lengths.unique()) > 2
    else:
        assert batch.lengths[0, 0] == ROW_TOKENS[PAIRS.index(rows)]
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-5, atol=1e-5)
    same_gradients(our_policy, their_policy)


def test_the_hinge_of_dpo_is_another_loss(tmp_path, models):
    """TRL's `hinge` is max(0, 1 − βΔ) on log-ratios; SLiC-HF is on log-probabilities. With β = δ = 1, λ = 0 they would
    agree if the reference were uniform; fed with the log-ratios in place of log-probabilities ours is TRL's."""
    theirs, _, batch, _ = theirs_and_ours(models, tmp_path, "dpo", ROWS, loss_type="hinge", beta=1.0)
    slic = build("slic_hf", delta=1.0, nll_weight=0.0)
    assert (slic(batch).mean() - theirs).abs() > 0.1
    on_ratios = make((batch.policy_logps - batch.reference_logps).detach(), lengths=batch.lengths)
    torch.testing.assert_close(slic(on_ratios).mean(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("swap", [False, True])
def test_kto(tmp_path, models, swap):
    """TRL's loss is a mean over responses, ours a mean over pairs: the half of ours.

    TRL builds a mismatched response for every response, we take one per list; here both get the mean of a list's two,
    so z is the same. With policy and reference swapped the mean log-ratio changes sign: once z > 0, once it is cut off.
    """
    import trl
    from datasets import Dataset

    policy, reference, tokenizer = (models[1], models[0], models[2]) if swap else models
    ours, our_reference = copy.deepcopy(policy), copy.deepcopy(reference)
    rows = {
        "prompt": [p for p in ROWS["prompt"] for _ in range(2)],
        "completion": [r for pair in zip(ROWS["chosen"], ROWS["rejected"], strict=True) for r in pair],
        "label": [True, False] * 3,
    }
    args = trl.KTOConfig(**settings(tmp_path, 6, beta=0.3, desirable_weight=1.2, undesirable_weight=0.8))
    trainer = trl.KTOTrainer(
        model=policy, ref_model=reference, args=args, processing_class=tokenizer, train_dataset=Dataset.from_dict(rows)
    )
    inputs = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    columns = [inputs[name] for name in ("input_ids", "attention_mask", "completion_mask")]
    others = [inputs[f"KL_{name}"] for name in ("input_ids", "attention_mask", "completion_mask")]
    with torch.no_grad():
        mismatched = (sums(ours, *others) - sums(our_reference, *others)).reshape(3, 2).mean(1)
        reference_logps = sums(our_reference, *columns).reshape(3, 2)
    assert (mismatched.mean() < -0.1) if swap else (mismatched.mean() > 0.1)
    batch = make(sums(ours, *columns).reshape(3, 2), reference_logps, mismatched=mismatched)
    losses = build("kto", beta=0.3, desirable_weight=1.2, undesirable_weight=0.8)(batch)
    (losses.mean() / 2).backward()
    assert losses.std() > 0.05
    torch.testing.assert_close(losses.mean() / 2, theirs, rtol=1e-5, atol=1e-5)
    same_gradients(ours, trainer.model)
