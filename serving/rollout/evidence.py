"""How much the counts say: e-processes, betting confidence sequences, sequential tests. Pure.

Everything here is *anytime-valid*. An e-process E under a hypothesis H is non-negative and has expectation
at most 1 at every stopping time, so by Ville's inequality (Ville 1939; Ramdas et al., arXiv 2210.01948)

    P_H(E ever reaches 1/α) ≤ α,

however often somebody looks, and whenever they stop. Values are kept as logarithms. Arguments may be numbers
or arrays: one rollout is judged with numbers, and the simulator judges a thousand with the same functions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import betaln, gammaln, xlog1py, xlogy

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]
BoolArray = npt.NDArray[np.bool_]
Numbers = npt.ArrayLike

# The relative risks at which a bad version is looked for. The weights favour three (a fault in part of the
# input) and fifty (a version that fails outright): those are the two that rollouts meet.
_WORSE_RATIOS = (1.5, 2.0, 3.0, 5.0, 10.0, 20.0, 50.0)
_WORSE_WEIGHTS = (0.5, 1.5, 6.0, 1.5, 1.0, 2.0, 3.0)

# Fractions of the null ratio at which "not worse" is looked for, besides exactly 1 ("as good as stable").
_BETTER_FRACTIONS = (0.25, 0.5, 0.75)


@dataclass(frozen=True, slots=True)
class RiskMixture:
    """A test of one relative risk against a mixture of others.

    Attributes:
        ratios: r_k [K]; r_0 is the hypothesis, the others are the alternatives.
        log_start: log of the wealth bet on each at the start [K]; sums to 1. What is on r_0 is a reserve.
        log_release: log of the alternatives' shares in what leaves the reserve [K]; minus infinity for r_0.
        release: the part of the reserve that is bet in each further interval with bad events.
    """

    ratios: FloatArray
    log_start: FloatArray
    log_release: FloatArray
    release: float


def worse_than_stable() -> RiskMixture:
    """Tests r ≤ 1 (the candidate is no worse) against larger risks: what a rollback needs.

    A part is kept in reserve and bet little by little, so that a version which turns bad after an hour of
    good service is found without first having to lose what that hour won (the fixed-share rule of
    Herbster & Warmuth 1998, as a mixture over the times of a change).
    """
    return _mixture(1.0, _WORSE_RATIOS, _WORSE_WEIGHTS, reserve=0.1, release=1 / 500)


def within_margin(margin: float) -> RiskMixture:
    """Tests r ≥ 1 + margin (worse by more than the margin) against smaller risks: what a promotion needs.

    Half of the weight is on r = 1, because a version that changes nothing here is the common case.

    Raises:
        ValueError: The margin is not above 0: no amount of evidence shows a difference of exactly nothing.
    """
    if not margin > 0.0:
        raise ValueError(
            f"margin is {margin}; it must be above 0, since nothing proves two rates to be equal"
        )
    null_ratio = 1.0 + margin
    better = tuple(null_ratio * fraction for fraction in _BETTER_FRACTIONS)
    weights = (float(len(better)), *(1.0 for _ in better))
    return _mixture(null_ratio, (1.0, *better), weights, reserve=0.0, release=0.0)


def _mixture(
    null_ratio: float,
    ratios: tuple[float, ...],
    weights: tuple[float, ...],
    *,
    reserve: float,
    release: float,
) -> RiskMixture:
    shares = np.array(weights) / sum(weights)
    with np.errstate(divide="ignore"):
        log_start = np.log(np.concatenate([[reserve], (1.0 - reserve) * shares]))
        log_release = np.log(np.concatenate([[0.0], shares]))
    return RiskMixture(np.array([null_ratio, *ratios]), log_start, log_release, release)


def two_arm_ratios(
    mixture: RiskMixture,
    candidate_bad: Numbers,
    stable_bad: Numbers,
    candidate_n: Numbers,
    stable_n: Numbers,
    most_events: Numbers = np.inf,
) -> FloatArray:
    """The log likelihood ratio of one interval's bad events under each of the mixture's risks, [..., K].

    A bad event belongs to the candidate with probability θ(r) = w·r / (w·r + 1 − w), r being its relative
    risk (Lindon & Malek, NeurIPS 2022, arXiv 2011.03567), so that over bad events with c = 1 for the
    candidate's the ratio is ∏ [θ(r_k)/θ(r₀)]^c · [(1−θ(r_k))/(1−θ(r₀))]^(1−c).

    w is the candidate's share of the requests *that were made in this interval*, not the share that was
    planned: callers with sticky keys are not equal, and one busy caller must not look like a fault. Given the
    interval's requests and the number of bad ones, the candidate's part is hypergeometric under r = 1; the
    ratio is convex in it, and a hypergeometric variable is smaller in convex order than the binomial one with
    the same mean (Hoeffding 1963, theorem 4). So the expectation stays at or below 1 for intervals of any
    length. An interval in which only one arm was asked says nothing, so `ledger.record` joins it to the next
    ones, up to the first request of the other arm. When that comes does not depend on which requests are bad.

    This assumes that bad events fall on requests whoever sent them. A few callers who fail or wait far more
    often than others, and whose keys hold them to one arm, look like a fault of its version.

    An incident that hits both arms brings many bad events that say "both alike" and nothing about the
    version. With more than `most_events` in the interval the ratio is raised to the power
    most_events / events, so that a minute of incident does not drown an hour of evidence. The power depends
    on the interval's total only, and x^η is concave: the expectation still is at most 1 (Jensen).

    With r₀ = 1 all of this is exact. With r₀ above 1 the candidate's part is noncentral hypergeometric, and
    the bound holds as far as that is close to binomial: as long as few of an interval's requests are bad.

    Args:
        mixture: The hypothesis and the alternatives.
        candidate_bad: Bad events of the candidate in the interval, [...].
        stable_bad: Bad events of the stable version, [...].
        candidate_n: Requests (or, for a paired comparison, pairs) that the candidate answered, [...].
        stable_n: The same for the stable version.
        most_events: The most events that the interval may count for, [...]; known before the interval.
    """
    bad_c, bad_s, n_c, n_s, most = (
        np.asarray(value, dtype=np.float64)[..., None]
        for value in (candidate_bad, stable_bad, candidate_n, stable_n, most_events)
    )
    both = (n_c > 0) & (n_s > 0)
    # θ(r)/θ(r₀) = (r/r₀)·D(r₀)/D(r) and (1−θ(r))/(1−θ(r₀)) = D(r₀)/D(r), with D(r) = n_c·r + n_s.
    null_ratio = mixture.ratios[0]
    log_shrink = np.log(np.where(both, n_c * null_ratio + n_s, 1.0)) - np.log(
        np.where(both, n_c * mixture.ratios + n_s, 1.0)
    )
    log_ratio = np.log(mixture.ratios / null_ratio)
    power = np.minimum(1.0, most / np.maximum(bad_c + bad_s, 1.0))
    ratios: FloatArray = np.where(both, power * (bad_c * (log_ratio + log_shrink) + bad_s * log_shrink), 0.0)
    return ratios


def mcnemar_ratios(
    mixture: RiskMixture,
    candidate_only: Numbers,
    stable_only: Numbers,
    n: Numbers,
    most_events: Numbers = np.inf,
) -> FloatArray:
    """The log likelihood ratio of one interval's pairs under each of the mixture's risks, [..., K].

    A pair is two answers to one request, each known to be good or bad: since a copy failed, or since feedback
    brought the true label, which judges both answers. Of the pairs in which exactly one is bad, it is the
    candidate's with probability ½ if both versions are alike (McNemar 1947, Psychometrika 12), in general
    with θ(r) = r / (r + 1), however difficult the images are; pairs in which both are bad, or neither, say
    nothing. The ratio is

        ∏ [θ(r_k)/θ(r₀)]^c · [(1−θ(r_k))/(1−θ(r₀))]^(1−c),   c = 1 where only the candidate's is bad,

    the two-arm test of Lindon & Malek (arXiv 2011.03567) with w = ½, so that pairs and callers' requests may
    win the same wealth; a sequential McNemar test, valid at all times by Ville's inequality. r is the ratio
    of the discordant pairs: if it is at most 1 + margin, so is the ratio of the error rates, which the
    concordant pairs only bring nearer to 1.

    Args:
        mixture: The hypothesis and the alternatives.
        candidate_only: Pairs in which only the candidate's answer was bad, [...].
        stable_only: Pairs in which only the stable version's was, [...].
        n: All pairs, [...].
        most_events: As in `two_arm_ratios`.
    """
    return two_arm_ratios(mixture, candidate_only, stable_only, n, n, most_events)


def two_arm_update(mixture: RiskMixture, log_wealth: FloatArray, log_ratios: FloatArray) -> FloatArray:
    """The wealth on each alternative [..., K] after an interval with these log likelihood ratios [..., K].

    Start with `mixture.log_start`; `log_sum_exp` of the result is log E.
    """
    if mixture.release > 0.0:
        freed = log_wealth[..., :1] + np.log(mixture.release) + mixture.log_release
        kept = log_wealth.copy()
        kept[..., 0] += np.log1p(-mixture.release)
        log_wealth = np.logaddexp(kept, freed)
    return log_wealth + log_ratios


def log_sum_exp(values: FloatArray) -> FloatArray:
    """Log Σ exp over the last axis, without overflow."""
    top = values.max(axis=-1)
    summed: FloatArray = top + np.log(np.exp(values - top[..., None]).sum(axis=-1))
    return summed


def log_rate_below(bad: Numbers, n: Numbers, rate: float) -> FloatArray:
    """Log E against "each request is bad with probability at least `rate`", [...].

    A mixture over q < rate of ∏ (q/rate)^x · ((1−q)/(1−rate))^(1−x): each factor has expectation at most 1
    while the true probability is at or above `rate`, whatever the history (Wald 1945; method of mixtures,
    Robbins 1970). Depends on the counts alone.
    """
    others = rate * np.array([0.01, 0.1, 0.3, 0.6])
    x = np.asarray(bad, dtype=np.float64)[..., None]
    rest = np.asarray(n, dtype=np.float64)[..., None] - x
    log_ratios = x * np.log(others / rate) + rest * (np.log1p(-others) - np.log1p(-rate))
    return log_sum_exp(log_ratios - np.log(len(others)))


def log_rate_alarm(log_alarm: FloatArray, bad: Numbers, n: Numbers, rate: float) -> FloatArray:
    """The next value of an alarm that sounds when the probability of a bad request rises above `rate`, [...].

    A CUSUM in the form of an e-detector (Shin, Ramdas & Rinaldo, arXiv 2203.03532): likelihood ratios of the
    rate half way from `rate` to 1, restarted whenever the product falls below 1, so that an hour of good
    service does not delay it. While the probability is at or below `rate` it takes at least c intervals on
    average until the value reaches log c.
    """
    x = np.asarray(bad, dtype=np.float64)
    rest = np.asarray(n, dtype=np.float64) - x
    other = (1.0 + rate) / 2
    gain = x * np.log(other / rate) + rest * (np.log1p(-other) - np.log1p(-rate))
    alarm: FloatArray = np.maximum(log_alarm, 0.0) + gain
    return alarm


def log_betting_wealth(successes: Numbers, n: Numbers, mean: Numbers) -> FloatArray:
    """Log wealth of a gambler who bets that a 0/1 sequence's mean is not `mean`, [...].

    The wealth ∏ (1 + λ_i·(x_i − m)) is a martingale if the mean is m and λ_i is chosen before x_i
    (Waudby-Smith & Ramdas, JRSS B 2024, arXiv 2010.09686). Betting λ_i = (p̂ − m)/(m(1−m)), with p̂ the
    Krichevsky-Trofimov forecast (s + ½)/(i + 1), multiplies out to a Beta(½, ½) mixture,

        B(s + ½, n − s + ½) / B(½, ½) / (m^s · (1−m)^(n−s)),

    which needs the counts only, so that several gateways' counts can be added up in any order.
    """
    s = np.asarray(successes, dtype=np.float64)
    f = np.asarray(n, dtype=np.float64) - s
    m = np.asarray(mean, dtype=np.float64)
    wealth: FloatArray = betaln(s + 0.5, f + 0.5) - betaln(0.5, 0.5) - xlogy(s, m) - xlog1py(f, -m)
    return wealth


def mean_is_below(successes: Numbers, n: Numbers, mean: float, alpha: Numbers) -> BoolArray:
    """Whether the confidence sequence at level 1 − alpha lies wholly below `mean`, [...].

    The same answer as `confidence_sequence(...)[1] < mean`, without looking for the end: the wealth falls up
    to the observed share and rises after it.
    """
    s = np.asarray(successes, dtype=np.float64)
    total = np.asarray(n, dtype=np.float64)
    rejected = log_betting_wealth(s, total, mean) >= -np.log(np.asarray(alpha))
    below: BoolArray = rejected & (s < mean * total)
    return below


def confidence_sequence(successes: Numbers, n: Numbers, alpha: float) -> tuple[FloatArray, FloatArray]:
    """Limits (lower, upper), [...] each, that hold the true mean at *all* times with probability 1 − alpha.

    All m whose betting wealth has not reached 1/alpha (Waudby-Smith & Ramdas, arXiv 2010.09686, theorem 1),
    found by bisection on each side of the observed share. (0, 1) while nothing was observed.
    """
    s = np.asarray(successes, dtype=np.float64)
    total = np.asarray(n, dtype=np.float64)
    limit = -np.log(alpha)
    share = np.where(total > 0, s / np.maximum(total, 1.0), 0.5)
    ends = []
    for outer in (np.zeros_like(share), np.ones_like(share)):
        outside, inside = outer, share
        for _ in range(50):
            middle = (outside + inside) / 2
            rejected = log_betting_wealth(s, total, middle) >= limit
            outside, inside = np.where(rejected, middle, outside), np.where(rejected, inside, middle)
        ends.append(np.where((share == outer) | (total == 0), outer, outside))
    return ends[0], ends[1]


def log_split(counts: Numbers, shares: Numbers) -> FloatArray:
    """Log E against "requests fall on the arms with these shares", [...], from counts and shares [..., J].

    The sequential multinomial test of Lindon & Malek (NeurIPS 2022, arXiv 2011.03567), a Dirichlet(1, …, 1)
    mixture over the true shares:

        E = Γ(J) · ∏ Γ(1 + x_j) / Γ(J + n) / ∏ ρ_j^x_j

    A request on an arm whose share is 0 makes it infinite: the router is broken. When shares change, the
    values of the periods are multiplied (their logarithms added): each period is a test of its own.
    """
    x = np.asarray(counts, dtype=np.float64)
    rho = np.asarray(shares, dtype=np.float64)
    arms = x.shape[-1]
    log_e: FloatArray = (
        gammaln(arms)
        + gammaln(1.0 + x).sum(axis=-1)
        - gammaln(arms + x.sum(axis=-1))
        - xlogy(x, rho).sum(axis=-1)
    )
    return log_e
