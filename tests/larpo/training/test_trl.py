"""Objectives that TRL has too: its own trainers compute the loss of the same batch, and every weight's gradient.

Ours gets its log-probabilities from the plain logits of untouched copies of the two models. TRL has no RRHF and no
R-DPO; its `ld_alpha` (LD-DPO) discounts the tokens of the longer response, which is another method.
"""

from __future__ import annotations

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
SAME_LENGTH_CHOSEN = ROWS | {"chosen": [" c d e", " h h a", " d d d"]}


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


def dpo(models, folder, loss_type: str, beta: float):
    """TRL's DPO loss, the policy with its gradients, and our untouched policy's batch."""
    import trl
    from datasets import Dataset

    policy, reference, tokenizer = models
    ours, our_reference = copy.deepcopy(policy), copy.deepcopy(reference)
    trainer = trl.DPOTrainer(
        model=policy,
        ref_model=reference,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(ROWS),
        args=trl.DPOConfig(**settings(folder, 3, beta=beta, loss_type=loss_type)),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    columns = inputs["input_ids"], inputs["attention_mask"], inputs["completion_mask"]
    lengths = inputs["completion_mask"][:, 1:].sum(1)

    def pairs(values: Tensor) -> Tensor:
        return values.reshape(2, 3).T  # TRL's rows are chosen, chosen, …, rejected, …

    batch = make(pairs(sums(ours, *columns)), pairs(sums(our_reference, *columns)).detach(), lengths=pairs(lengths))
    return theirs.detach(), trainer.model, batch, ours


@pytest.mark.parametrize(
    ("loss_type", "beta", "name", "params"), [("sigmoid", 0.3, "dpo", {"beta": 0.3}), ("ipo", 0.2, "ipo", {"tau": 0.2})]
)
def test_dpo_and_ipo(tmp_path, models, loss_type, beta, name, params):
    """TRL's `beta` of IPO is τ; both take mean log-ratios there."""
    theirs, their_policy, batch, our_policy = dpo(models, tmp_path, loss_type, beta)
    ours = build(name, **params)(batch)
    ours.mean().backward()
    assert ours.std() > 0.1  # the three pairs differ, and so does the policy from its reference
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-5, atol=1e-5)
    same_gradients(our_policy, their_policy)


def test_the_hinge_of_dpo_is_another_loss(tmp_path, models):
    """TRL's `hinge` is max(0, 1 − βΔ) on log-ratios; SLiC-HF is on log-probabilities. With β = δ = 1, λ = 0 they would
    agree if the reference were uniform; fed with the log-ratios in place of log-probabilities ours is TRL's."""
    theirs, _, batch, _ = dpo(models, tmp_path, "hinge", 1.0)
    slic = build("slic_hf", delta=1.0, nll_weight=0.0)
    assert (slic(batch).mean() - theirs).abs() > 0.1
    on_ratios = make((batch.policy_logps - batch.reference_logps).detach(), lengths=batch.lengths)
    torch.testing.assert_close(slic(on_ratios).mean(), theirs, rtol=1e-5, atol=1e-5)


def cpo(models, folder, rows: dict, **options):
    """TRL's CPO loss, the policy with its gradients, and our untouched policy's batch."""
    from datasets import Dataset
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, _, tokenizer = models
    ours = copy.deepcopy(policy)
    n = len(rows["prompt"])
    trainer = CPOTrainer(
        model=policy,
        processing_class=tokenizer,
        train_dataset=Dataset.from_dict(rows),
        args=CPOConfig(**settings(folder, n, **options)),
    )
    inputs = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, inputs)
    theirs.backward()
    joined = CPOTrainer.concatenated_inputs(inputs, padding_value=0)
    response = joined["concatenated_labels"] != -100
    logps = sums(ours, joined["concatenated_input_ids"], joined["concatenated_attention_mask"], response)
    lengths = response[:, 1:].sum(1)
    batch = make(logps.reshape(2, n).T, lengths=lengths.reshape(2, n).T)
    return theirs.detach(), trainer.model, batch, ours


@pytest.mark.parametrize(
    ("options", "name", "params"),
    [
        ({"loss_type": "sigmoid", "beta": 0.3, "cpo_alpha": 0.7}, "cpo", {"beta": 0.3, "nll_weight": 0.7}),
        # γ = 0.4 · 1.5 = 0.6: TRL takes the absolute margin, we take its ratio to β.
        (
            {"loss_type": "simpo", "beta": 1.5, "cpo_alpha": 0.0, "simpo_gamma": 0.6},
            "simpo",
            {"beta": 1.5, "gamma_beta_ratio": 0.4},
        ),
        ({"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0}, "slic_hf", {"delta": 1.0, "nll_weight": 0.0}),
    ],
)
def test_cpo_simpo_and_the_hinge_of_slic(tmp_path, models, options, name, params):
    """CPO's NLL: TRL averages over the tokens of the batch, we over a list's tokens and then over lists. The chosen
    responses here are equally long, so that both are the same. TRL's CPO `hinge` at β = 1 is on log-probabilities,
    SLiC-HF's first term at δ = 1."""
    theirs, their_policy, batch, our_policy = cpo(models, tmp_path, SAME_LENGTH_CHOSEN, **options)
    assert len(batch.lengths[:, 0].unique()) == 1 and len(batch.lengths.unique()) > 2
    ours = build(name, **params)(batch)
    ours.mean().backward()
    assert ours.std() > 0.1
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-5, atol=1e-5)
    same_gradients(our_policy, their_policy)


@pytest.mark.parametrize("row", range(3))
def test_slic_with_its_regulariser(tmp_path, models, row):
    """One pair: λ s_w = λ |y_w| · s̄_w, so TRL's CPO `hinge` with cpo_alpha = λ |y_w| is the whole of SLiC-HF."""
    rows = {key: value[row : row + 1] for key, value in ROWS.items()}
    n_tokens = [4, 2, 2][row]  # with the </s> that TRL appends where there is none
    theirs, their_policy, batch, our_policy = cpo(
        models, tmp_path, rows, loss_type="hinge", beta=1.0, cpo_alpha=0.1 * n_tokens
    )
    assert batch.lengths[0, 0] == n_tokens
    ours = build("slic_hf", delta=1.0, nll_weight=0.1)(batch)
    ours.mean().backward()
    torch.testing.assert_close(ours.mean(), theirs, rtol=1e-5, atol=1e-5)
    same_gradients(our_policy, their_policy)


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
