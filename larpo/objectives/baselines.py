"""The methods that the paper's objectives are compared with (the table and the papers: docs/objectives.md).

With s = log π(y|x) summed over the response's tokens, s^ref the same of the reference, s̄ = s / |y|, the
log-ratio ρ = s − s^ref, ρ̄ = ρ / |y|, and y_w, y_l the better and the worse of two responses:

    ipo       ((ρ̄_w − ρ̄_l) − 1/(2τ))²
    slic_hf   max(0, δ − s_w + s_l) − λ s_w
    rrhf      Σ max(0, s̄_j − s̄_i) − λ s̄_1                               i, j with r_i > r_j; any list length
    cpo       −log σ(β(s_w − s_l)) − λ s̄_w
    kto       λ_D [1 − σ(β(ρ_w − z))] + λ_U [1 − σ(β(z − ρ_l))]            z: see `kto`
    rdpo      −log σ(β(ρ_w − ρ_l) + α(|y_w| − |y_l|))
    simpo     −log σ(β(s̄_w − s̄_l) − γ)

All but rrhf raise UserError unless every list has two responses. Equal rewards state no preference: rrhf
skips the pair, and a list without any strict preference has a loss and a gradient of exactly 0, the term
with λ included, since none of its responses is a better one to imitate.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from larpo.errors import UserError
from larpo.objectives import NonNegative, Positive
from larpo.objectives.batch import ListBatch, chosen_and_rejected, pick


def _where_strict(batch: ListBatch, losses: Tensor) -> Tensor:
    """The losses, (B,), of lists with a preference; 0 for the others."""
    return torch.where(batch.strict(), losses, 0)


def ipo(batch: ListBatch, *, tau: Positive = 0.1) -> Tensor:
    """((ρ̄_w − ρ̄_l) − 1/(2τ))², (B,): Azar et al. 2024, Eq. 17, on mean log-ratios.

    The paper writes sums. Means are what its authors used, as they confirmed to TRL: a sum grows with the
    response, and the target does not.
    """
    chosen, rejected = chosen_and_rejected(batch, "ipo")
    ratios = batch.token_means(batch.log_ratios())
    return _where_strict(batch, (pick(ratios, chosen) - pick(ratios, rejected) - 1 / (2 * tau)) ** 2)


def slic_hf(batch: ListBatch, *, delta: NonNegative = 1.0, nll_weight: NonNegative = 0.1) -> Tensor:
    """max(0, δ − s_w + s_l) − λ s_w, (B,), λ = nll_weight: Zhao et al. 2023, on summed log-probabilities.

    The regulariser imitates the better response, as in SimPO's comparison; the paper has the SFT data's target
    there. Unlike the NLL of rrhf and cpo it is a sum over tokens. TRL's DPO loss `hinge` is another: on log-ratios.
    """
    chosen, rejected = chosen_and_rejected(batch, "slic_hf")
    better, worse = pick(batch.policy_logps, chosen), pick(batch.policy_logps, rejected)
    return _where_strict(batch, F.relu(delta - better + worse) - nll_weight * better)


def rrhf(batch: ListBatch, *, nll_weight: NonNegative = 1.0) -> Tensor:
    """Σ max(0, s̄_j − s̄_i) over r_i > r_j, plus λ times the NLL per token of the first response, (B,).

    Yuan et al. 2023, λ = nll_weight. The rank term is a sum over pairs, not a mean. Of several best responses the
    list's first is imitated. The paper sums the NLL over tokens; here it is their mean.
    """
    means = batch.token_means(batch.policy_logps)
    hinges = F.relu(means[:, None, :] - means[:, :, None])
    rank = torch.where(batch.preferred(), hinges, 0).sum((1, 2))
    return _where_strict(batch, rank - nll_weight * pick(means, batch.first()))


def cpo(batch: ListBatch, *, beta: Positive = 0.1, nll_weight: NonNegative = 1.0) -> Tensor:
    """−log σ(β(s_w − s_l)) plus λ times the NLL per token of y_w, (B,): Xu et al. 2024, Eq. 3, λ = nll_weight.

    DPO with a uniform reference, so none is needed. The NLL is a mean over the tokens of each list; TRL takes
    it over the tokens of the whole batch.
    """
    chosen, rejected = chosen_and_rejected(batch, "cpo")
    better, worse = pick(batch.policy_logps, chosen), pick(batch.policy_logps, rejected)
    nll = -pick(batch.token_means(batch.policy_logps), chosen)
    return _where_strict(batch, -F.logsigmoid(beta * (better - worse)) + nll_weight * nll)


def kto(
    batch: ListBatch,
    *,
    beta: Positive = 0.1,
    desirable_weight: NonNegative = 1.0,
    undesirable_weight: NonNegative = 1.0,
) -> Tensor:
    """λ_D [1 − σ(β(ρ_w − z))] + λ_U [1 − σ(β(z − ρ_l))], (B,): Ethayarajh et al. 2024, Eq. 7, on pairs.

    The better response is the desirable example and the worse the undesirable one; λ_D = desirable_weight,
    λ_U = undesirable_weight. z = max(0, mean of ρ(y'|x) over the batch's mismatched responses) estimates
    KL(π ‖ π_ref) and carries no gradient. It is a mean over the lists that are in memory together, so here
    train.lists_per_device_batch is part of the method. Raises UserError for a batch without `mismatched`.
    """
    chosen, rejected = chosen_and_rejected(batch, "kto")
    if batch.mismatched is None:
        raise UserError(
            "objective kto: the lists hold no mismatched responses, which its reference point z needs; "
            "set `reference.mismatched: true`"
        )
    z = batch.mismatched.mean().clamp(min=0).detach()
    ratios = batch.log_ratios()
    desirable = torch.sigmoid(-beta * (pick(ratios, chosen) - z))
    undesirable = torch.sigmoid(-beta * (z - pick(ratios, rejected)))
    return _where_strict(batch, desirable_weight * desirable + undesirable_weight * undesirable)


kto.needs_mismatched = True


def rdpo(batch: ListBatch, *, beta: Positive = 0.1, alpha: NonNegative = 0.05) -> Tensor:
    """−log σ(β(ρ_w − ρ_l) + α(|y_w| − |y_l|)), (B,): Park et al. 2024; α = 0 is DPO.

    The sign is plus. It follows from the penalised reward r − α|y|, whose optimal policy has
    r = βρ + α|y| + const: a longer better response counts as partly won already, so it is pushed less.
    """
    chosen, rejected = chosen_and_rejected(batch, "rdpo")
    gamma = batch.gamma(beta)
    margin = alpha * (pick(batch.lengths, chosen) - pick(batch.lengths, rejected)).to(batch.dtype)
    return _where_strict(batch, -F.logsigmoid(pick(gamma, chosen) - pick(gamma, rejected) + margin))


def simpo(batch: ListBatch, *, beta: Positive = 2.0, gamma_beta_ratio: NonNegative = 0.25) -> Tensor:
    """−log σ(β(s̄_w − s̄_l) − γ), (B,): Meng et al. 2024, Eq. 6, on mean log-probabilities without a reference.

    The absolute margin is γ = gamma_beta_ratio · β, 0.5 by default. TRL's `simpo_gamma` is γ, not the ratio.
    """
    chosen, rejected = chosen_and_rejected(batch, "simpo")
    means = batch.token_means(batch.policy_logps)
    margin = beta * (pick(means, chosen) - pick(means, rejected))
    return _where_strict(batch, -F.logsigmoid(margin - gamma_beta_ratio * beta))


for _loss in (ipo, slic_hf, cpo, kto, rdpo, simpo):
    _loss.takes_pairs = True
