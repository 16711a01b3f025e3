"""How often customers come back and what they spend: BG/NBD and Gamma-Gamma.

A customer's history is x repeat order days, t_x the time of the last of them and T the time
since the first order day, in any one unit of time (t_x = 0 where x = 0).

BG/NBD (Fader, Hardie & Lee 2005, "Counting your customers the easy way"): while alive a customer
orders at rate lambda ~ Gamma(r, alpha), and after each order drops out for good with probability
p ~ Beta(a, b). Gamma-Gamma (Fader & Hardie 2013, "The Gamma-Gamma model of monetary value"): the
mean value of a customer's orders varies around a mean of the customer's own, independent of how
often the customer orders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import betaln, digamma, gammaln, hyp2f1

from uplift.data import FloatArray
from uplift.errors import DesignError

# Parameters between e^-10 and e^10 of the natural scale: beyond, the likelihood is flat.
LOG_BOUND = 10.0
_NEAR_ONE = 1e-6
Value = tuple[float, FloatArray]


@dataclass(frozen=True)
class BgNbd:
    """Fitted parameters; alpha is in the unit of time of the histories."""

    r: float
    alpha: float
    a: float
    b: float

    def log_likelihood(self, x: FloatArray, t_x: FloatArray, age: FloatArray) -> FloatArray:
        """(n,) log-likelihood of each history (Fader, Hardie & Lee 2005, equation 6)."""
        alive, gone = self._branches(x, t_x, age)
        start = gammaln(self.r + x) - gammaln(self.r) + self.r * np.log(self.alpha)
        out: FloatArray = start + np.logaddexp(alive, gone) - betaln(self.a, self.b)
        return out

    def _branches(
        self, x: FloatArray, t_x: FloatArray, age: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Logs of the two ways to such a history: still alive, or gone at the last repeat."""
        again = np.maximum(x, 1.0)
        alive = betaln(self.a, self.b + x) - (self.r + x) * np.log(self.alpha + age)
        gone = betaln(self.a + 1, self.b + again - 1) - (self.r + x) * np.log(self.alpha + t_x)
        return alive, np.where(x > 0, gone, -np.inf)

    def p_alive(self, x: FloatArray, t_x: FloatArray, age: FloatArray) -> FloatArray:
        """(n,) P(still a customer); 1 where x = 0, since one drops out only after a repeat."""
        alive, gone = self._branches(x, t_x, age)
        out: FloatArray = np.exp(alive - np.logaddexp(alive, gone))
        return out

    def expected_orders(
        self, t: float, x: FloatArray, t_x: FloatArray, age: FloatArray
    ) -> FloatArray:
        """(n,) E[Y(t)]: order days in the next t (Fader, Hardie & Lee 2005, equation 10).

        With z = t / (alpha + T + t), Euler's transformation turns the paper's
        ((alpha+T) / (alpha+T+t))^(r+x) 2F1(r+x, b+x; a+b+x-1; z) into
        (1-z)^(a-1) 2F1(a-1, a+b-1-r; a+b+x-1; z), whose series stays short for large x.
        """
        # a = 1 and a + b + x = 1 are removable singularities: step aside.
        a = self.a if abs(self.a - 1) > _NEAR_ONE else 1 + _NEAR_ONE
        z = t / (self.alpha + age + t)
        c = a + self.b + x - 1
        c = np.where(np.abs(c) > _NEAR_ONE, c, _NEAR_ONE)
        left = (1 - z) ** (a - 1) * hyp2f1(a - 1, a + self.b - 1 - self.r, c, z)
        out: FloatArray = c / (a - 1) * (1 - left) * self.p_alive(x, t_x, age)
        return out

    def p_order(self, t: float, x: FloatArray, t_x: FloatArray, age: FloatArray) -> FloatArray:
        """(n,) P(at least one order day in the next t).

        Given alive, lambda ~ Gamma(r + x, alpha + T), and nobody drops out before an order: no
        order comes with probability E[exp(-lambda t)] = ((alpha+T) / (alpha+T+t))^(r+x).
        """
        none = np.exp((self.r + x) * np.log1p(-t / (self.alpha + age + t)))
        out: FloatArray = self.p_alive(x, t_x, age) * (1 - none)
        return out


@dataclass(frozen=True)
class GammaGamma:
    """Fitted parameters; v is in currency. q > 1, so that the mean over customers exists."""

    p: float
    q: float
    v: float

    @property
    def mean(self) -> float:
        """Mean order value over all customers."""
        return self.p * self.v / (self.q - 1)

    def log_likelihood(self, x: FloatArray, value: FloatArray) -> FloatArray:
        """(n,) log-likelihood of mean value > 0 over x > 0 orders (Fader & Hardie 2013, 1a)."""
        px = self.p * x
        out: FloatArray = (
            gammaln(px + self.q)
            - gammaln(px)
            - gammaln(self.q)
            + self.q * np.log(self.v)
            + (px - 1) * np.log(value)
            + px * np.log(x)
            - (px + self.q) * np.log(self.v + x * value)
        )
        return out

    def expected_value(self, x: FloatArray, value: FloatArray) -> FloatArray:
        """(n,) E[M]: the customer's own mean order value, shrunk to the mean over customers
        (Fader & Hardie 2013, equation 5); that mean where x = 0 or the value is unknown."""
        known = (x > 0) & np.isfinite(value)
        n, z = np.where(known, x, 0.0), np.where(known, value, 0.0)
        out: FloatArray = self.p * (self.v + n * z) / (self.p * n + self.q - 1)
        return out


def fit_bgnbd(x: FloatArray, t_x: FloatArray, age: FloatArray) -> BgNbd:
    """Maximum likelihood on histories (n,) of customers with an order.

    Raises DesignError where nobody came back: then the likelihood has no maximum.
    """
    if not len(x) or not (x > 0).any():
        raise DesignError(
            f"BG/NBD needs customers who came back: expected some with a repeat order day, found "
            f"none among {len(x)}. Wait for more history."
        )
    # Equal histories are one row with a weight; time in units of the longest age.
    scale = float(max(age.max(), np.finfo(float).tiny))
    rows, weight = np.unique(np.column_stack([x, t_x, age]), axis=0, return_counts=True)
    x, t_x, age = rows[:, 0], rows[:, 1] / scale, rows[:, 2] / scale
    share = weight / weight.sum()

    def loss(logs: FloatArray) -> Value:
        r, alpha, a, b = np.exp(logs)
        model = BgNbd(r, alpha, a, b)
        alive, gone = model._branches(x, t_x, age)
        both = np.logaddexp(alive, gone)
        here = np.exp(alive - both)
        left = np.where(x > 0, 1 - here, 0.0)
        start = gammaln(r + x) - gammaln(r) + r * np.log(alpha)
        total = float(share @ (start + both - betaln(a, b)))
        again, end = np.maximum(x, 1.0), digamma(a + b + x)
        gradient = np.array(
            [
                share
                @ (
                    digamma(r + x)
                    - digamma(r)
                    + np.log(alpha)
                    - here * np.log(alpha + age)
                    - left * np.log(alpha + t_x)
                ),
                share @ (r / alpha - (r + x) * (here / (alpha + age) + left / (alpha + t_x))),
                share
                @ (here * digamma(a) + left * digamma(a + 1) - end - digamma(a) + digamma(a + b)),
                share
                @ (
                    here * digamma(b + x)
                    + left * digamma(b + again - 1)
                    - end
                    - digamma(b)
                    + digamma(a + b)
                ),
            ]
        )
        return -total, -gradient * np.exp(logs)

    starts = [(0.3, 0.1, 0.8, 2.5), (1.0, 0.5, 0.5, 5.0), (0.5, 0.05, 2.0, 2.0)]
    r, alpha, a, b = _best(loss, starts)
    return BgNbd(r, alpha * scale, a, b)


def fit_gamma_gamma(x: FloatArray, value: FloatArray) -> GammaGamma:
    """Maximum likelihood on customers' counts x > 0 of orders and their mean values > 0, (n,).

    Raises DesignError without such customers. The fit keeps q > 1.
    """
    if not len(x) or (x <= 0).any() or not (value > 0).all():
        raise DesignError(
            "Gamma-Gamma needs customers with repeat orders of positive value: expected some, "
            f"found {int(((x > 0) & (value > 0)).sum())} among {len(x)}. Leave out the others."
        )
    scale = float(value.mean())
    z = value / scale

    def loss(logs: FloatArray) -> Value:
        p, over, v = np.exp(logs)
        q = 1 + over
        px, sum_of = p * x, np.log(v + x * z)
        total = float(GammaGamma(p, q, v).log_likelihood(x, z).mean())
        by_p = x * (digamma(px + q) - digamma(px) + np.log(z) + np.log(x) - sum_of)
        by_q = digamma(px + q) - digamma(q) + np.log(v) - sum_of
        by_v = q / v - (px + q) / (v + x * z)
        gradient = np.array([by_p.mean(), by_q.mean(), by_v.mean()])
        return -total, -gradient * np.exp(logs)

    p, over, v = _best(loss, [(5.0, 2.0, 0.5), (1.0, 1.0, 1.0), (20.0, 5.0, 0.2)])
    return GammaGamma(p, 1 + over, v * scale)


def _best(
    loss: Callable[[FloatArray], Value], starts: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """Parameters with the smallest loss over several starts, found in logs and within bounds."""
    found = [
        minimize(
            loss,
            np.log(start),
            jac=True,
            method="L-BFGS-B",
            bounds=[(-LOG_BOUND, LOG_BOUND)] * len(start),
            options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-9},
        )
        for start in starts
    ]
    best = min(found, key=lambda result: result.fun)
    return tuple(float(value) for value in np.exp(best.x))
