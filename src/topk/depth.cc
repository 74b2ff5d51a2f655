#include "topk/depth.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace riffle {
namespace {

// With f_m(x) = sum_{j<=m} x^j / j!,
//
//   P(depth = m) = k! / N^k [x^k] D(x),  D = f_m^N - f_{m-1}^N.
//
// D's coefficients are not negative, so Cauchy's formula over the circle of radius r, by the
// trapezoidal rule, loses nothing to cancellation when r is near the saddle point, where the
// coefficients of D(r x) have their mean at k: the result is then about 1 / sd of the largest term,
// however small the probability is. D itself is a^N - b^N = b^N ((1 + t / b)^N - 1) with a = f_m,
// b = f_{m-1}, t = x^m / m!, by log1p and expm1. The recurrence f (f^N)' = N f' f^N was tried first:
// for k > N it has terms of both signs and loses the lower tail altogether.

// Long doubles hold the logarithms of the large factors, whose sum is small.
using Real = long double;

constexpr Real kLogSmallest = -745.2L;  // of the smallest positive double
constexpr double kNegligible = 1e-19;

// log(n!).
Real LogFactorial(int64_t n) {
  if (n < 32) {
    Real product = 1;
    for (int64_t i = 2; i <= n; ++i) {
      product *= static_cast<Real>(i);
    }
    return std::log(product);
  }
  // Stirling's series; the first term left out is below 1e-18 from n = 32 on.
  const Real x = static_cast<Real>(n);
  const Real y = 1 / (x * x);
  constexpr Real kHalfLogTwoPi = 0.918938533204672741780329736405617640L;
  return (x + 0.5L) * std::log(x) - x + kHalfLogTwoPi +
         (1.0L / 12 -
          y * (1.0L / 360 - y * (1.0L / 1260 - y * (1.0L / 1680 - y * (1.0L / 1188 - y * (691.0L / 360360)))))) / x;
}

// P(depth = m) where no second lane can matter: the expected number of lanes with exactly m.
double OneLane(int64_t k, int64_t lanes, int64_t m) {
  if (lanes == 1) {
    return m == k ? 1.0 : 0.0;
  }
  const Real n = static_cast<Real>(lanes);
  const Real log_p = LogFactorial(k) - LogFactorial(m) - LogFactorial(k - m) +
                     static_cast<Real>(1 - m) * std::log(n) +
                     static_cast<Real>(k - m) * std::log1p(-1 / n);
  return static_cast<double>(std::exp(log_p));
}

// The terms r^j / j! of f_m, relative to the largest of them, and their moments. Terms that are
// negligible beside the sum are left out.
struct Terms {
  Terms(Real radius, int64_t last) : r(radius), m(last) {
    const int64_t mode = std::min(last, static_cast<int64_t>(radius));
    const Real cutoff = 1e-24L;
    int64_t from = mode;
    for (Real term = 1; from > 0 && term > cutoff; --from) {
      term *= static_cast<Real>(from) / radius;
    }
    first = from;
    q.resize(static_cast<size_t>(last - first + 1));
    q[mode - first] = 1;
    for (int64_t j = mode; j > first; --j) {
      q[j - 1 - first] = q[j - first] * static_cast<Real>(j) / radius;
    }
    for (int64_t j = mode + 1; j <= last; ++j) {
      q[j - first] = q[j - 1 - first] * radius / static_cast<Real>(j);
    }
    log_scale = static_cast<Real>(mode) * std::log(radius) - LogFactorial(mode);
  }

  // Sum, mean and variance of the terms up to and with j = `last`.
  struct Moments {
    Real sum = 0, mean = 0, variance = 0;
  };
  Moments Upto(int64_t last) const {
    Moments result;
    Real sum1 = 0, sum2 = 0;
    const Real origin = static_cast<Real>(first);
    for (int64_t j = first; j <= last; ++j) {
      const Real q_j = q[j - first];
      const Real offset = static_cast<Real>(j) - origin;
      result.sum += q_j;
      sum1 += q_j * offset;
      sum2 += q_j * offset * offset;
    }
    if (result.sum > 0) {
      const Real mean = sum1 / result.sum;
      result.mean = origin + mean;
      result.variance = std::max<Real>(0, sum2 / result.sum - mean * mean);
    }
    return result;
  }

  Real r;
  int64_t m;
  int64_t first = 0;
  std::vector<Real> q;  // r^j / j! / exp(log_scale), j = first..m
  Real log_scale = 0;
};

// D on one circle.
class Circle {
 public:
  Circle(int64_t k, int64_t lanes, int64_t m, Real r);

  // The mean of the coefficients of D(r x) less k, and their standard deviation (no less).
  Real Excess() const { return mean_ - static_cast<Real>(k_); }
  Real Deviation() const { return deviation_; }

  // log of k! / N^k D(r) / r^k, an upper bound of P(depth = m)'s.
  Real LogBound() const;
  double Probability() const;

 private:
  int64_t k_, lanes_, m_;
  Terms terms_;
  Real a_ = 0, b_ = 0, t_ = 0;  // f_m, f_{m-1} and their difference at r, relative
  Real log_ratio_ = 0;          // N log(a / b)
  Real mean_ = 0, deviation_ = 0;
};

Circle::Circle(int64_t k, int64_t lanes, int64_t m, Real r)
    : k_(k), lanes_(lanes), m_(m), terms_(r, m) {
  const Terms::Moments below = terms_.Upto(m - 1);
  const Terms::Moments all = terms_.Upto(m);
  const Real n = static_cast<Real>(lanes);
  a_ = all.sum;
  b_ = below.sum;
  t_ = terms_.q.back();
  deviation_ = std::sqrt(n * all.variance);
  if (b_ <= 0) {  // all but the last term are negligible
    log_ratio_ = INFINITY;
    mean_ = n * all.mean;
    return;
  }
  log_ratio_ = n * std::log1p(t_ / b_);
  if (log_ratio_ < 1e-6L) {  // D = N t b^(N-1) but for this much
    mean_ = static_cast<Real>(m) + (n - 1) * below.mean;
  } else {
    const Real weight = std::exp(-log_ratio_);
    mean_ = n * (all.mean - weight * below.mean) / -std::expm1(-log_ratio_);
  }
}

Real Circle::LogBound() const {
  const Real n = static_cast<Real>(lanes_);
  const Real log_d = n * (std::log(a_) + terms_.log_scale) + std::log(-std::expm1(-log_ratio_));
  return LogFactorial(k_) - static_cast<Real>(k_) * (std::log(n) + std::log(terms_.r)) + log_d;
}

struct Complex {
  double re = 0, im = 0;
};

// log(1 + z).
Complex Log1p(Complex z) {
  return {0.5 * std::log1p(z.re * (2 + z.re) + z.im * z.im), std::atan2(z.im, 1 + z.re)};
}
Complex Exp(Complex z) {
  const double size = std::exp(z.re);
  return {size * std::cos(z.im), size * std::sin(z.im)};
}
Complex Expm1(Complex z) {
  const double half_sine = std::sin(0.5 * z.im);
  return {std::expm1(z.re) * std::cos(z.im) - 2 * half_sine * half_sine,
          std::exp(z.re) * std::sin(z.im)};
}
Complex Times(Complex x, Complex y) {
  return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}
Complex Over(Complex x, Complex y) {
  const double norm = y.re * y.re + y.im * y.im;
  return {(x.re * y.re + x.im * y.im) / norm, (x.im * y.re - x.re * y.im) / norm};
}

double Circle::Probability() const {
  const Real log_bound = LogBound();
  if (log_bound < kLogSmallest) {
    return 0;
  }
  // Coefficients `points` away from k alias onto it: ten deviations and more are negligible.
  const int64_t points = std::min<int64_t>(
      static_cast<int64_t>(10 * (deviation_ + std::fabs(Excess()))) + 64, m_ * lanes_ + 1);
  std::vector<Complex> roots(points);  // of unity, less one: log1p then keeps what is small
  for (int64_t i = 0; i < points; ++i) {
    const double angle = 2 * std::numbers::pi * static_cast<double>(i) / static_cast<double>(points);
    const double half_sine = std::sin(0.5 * angle);
    roots[i] = {-2 * half_sine * half_sine, std::sin(angle)};
  }
  std::vector<double> weights(terms_.q.size());
  for (size_t j = 0; j < weights.size(); ++j) {
    weights[j] = static_cast<double>(terms_.q[j] / a_);
  }
  const double n = static_cast<double>(lanes_);
  const double t = static_cast<double>(t_ / a_);
  double sum = 0;
  for (int64_t i = 0; i <= points / 2; ++i) {
    Complex below;  // (f_{m-1}(z) - f_{m-1}(r)) / f_m(r)
    int64_t at = i * (terms_.first % points) % points;
    for (int64_t j = terms_.first; j < m_; ++j) {
      below.re += weights[j - terms_.first] * roots[at].re;
      below.im += weights[j - terms_.first] * roots[at].im;
      at += i;
      at -= at >= points ? points : 0;
    }
    const Complex last{t * (1 + roots[at].re), t * roots[at].im};
    const Complex b{below.re + static_cast<double>(b_ / a_), below.im};
    Complex d;  // D(z) / f_m(r)^N
    if (n * std::hypot(last.re, last.im) < std::hypot(b.re, b.im)) {
      const double b0 = static_cast<double>(b_ / a_);
      const Complex log_b = Log1p({below.re / b0, below.im / b0});
      const Complex log_a = Log1p(Over(last, b));
      const Complex power =
          Exp({n * log_b.re - static_cast<double>(log_ratio_), n * log_b.im});
      d = Times(power, Expm1({n * log_a.re, n * log_a.im}));
    } else {
      const Complex log_a = Log1p({below.re + t * roots[at].re, below.im + t * roots[at].im});
      d = Exp({n * log_a.re, n * log_a.im});
      if (b_ > 0) {
        const double b0 = static_cast<double>(b_ / a_);
        const Complex log_b = Log1p({below.re / b0, below.im / b0});
        const Complex power =
            Exp({n * log_b.re - static_cast<double>(log_ratio_), n * log_b.im});
        d = {d.re - power.re, d.im - power.im};
      }
    }
    const Complex turn = roots[i * (k_ % points) % points];
    const double term = d.re * (1 + turn.re) + d.im * turn.im;
    sum += i == 0 || 2 * i == points ? term : 2 * term;
  }
  // sum / D(r), which is D(r) / f_m(r)^N of the scale above.
  const Real share = static_cast<Real>(sum) / static_cast<Real>(points) / -std::expm1(-log_ratio_);
  return share <= 0 ? 0 : static_cast<double>(std::exp(log_bound + std::log(share)));
}

// Pre: ceil(k / lanes) <= m <= k / 2.
double AtDepth(int64_t k, int64_t lanes, int64_t m) {
  if (m * lanes == k) {  // every lane has m
    const Real log_p = LogFactorial(k) - static_cast<Real>(lanes) * LogFactorial(m) -
                       static_cast<Real>(k) * std::log(static_cast<Real>(lanes));
    return static_cast<double>(std::exp(log_p));
  }
  Real low = static_cast<Real>(k) / static_cast<Real>(lanes), high = low;
  while (Circle(k, lanes, m, low).Excess() > 0) {
    low /= 2;
  }
  while (Circle(k, lanes, m, high).Excess() < 0) {
    high *= 2;
  }
  // Anywhere within a fraction of a deviation of the saddle point is as good.
  for (;;) {
    const Real r = std::sqrt(low * high);
    const Circle circle(k, lanes, m, r);
    if (std::fabs(circle.Excess()) <= 0.25L * circle.Deviation() || high <= low * 1.0001L) {
      return circle.Probability();
    }
    (circle.Excess() < 0 ? low : high) = r;
  }
}

// P(depth = m) for m from result.first on, until it vanishes.
void ExactDepths(int64_t k, int64_t lanes, DepthDistribution& result) {
  bool one_lane = lanes == 1;
  for (int64_t m = result.first; m <= k; ++m) {
    one_lane = one_lane || m > k / 2;
    const double p = one_lane ? OneLane(k, lanes, m) : AtDepth(k, lanes, m);
    if (p == 0 && one_lane) {
      return;
    }
    one_lane = one_lane || (!result.pmf.empty() && p < result.pmf.back() && p < kNegligible);
    result.pmf.push_back(p);
  }
}

// P(depth <= m) = P(Poisson(k / lanes) <= m)^lanes.
void PoissonDepths(int64_t k, int64_t lanes, DepthDistribution& result) {
  const Real n = static_cast<Real>(lanes);
  const Real mean = static_cast<Real>(k) / n;
  const auto reach = static_cast<int64_t>(12 * std::sqrt(mean)) + 64;
  const int64_t begin = std::max<int64_t>(0, result.first - reach);
  const int64_t end = std::min(k, result.first + reach);
  std::vector<Real> terms;
  for (int64_t m = begin; m <= end; ++m) {
    terms.push_back(
        std::exp(static_cast<Real>(m) * std::log(mean) - mean - LogFactorial(m)));
  }
  Real sum = 0;
  for (int64_t m = begin; m <= end; ++m) {
    const Real term = terms[m - begin];
    sum += term;
    if (m >= result.first) {
      const Real log_below = n * std::log(std::min<Real>(sum, 1));
      const Real share = -std::expm1(n * std::log1p(-term / sum));
      result.pmf.push_back(static_cast<double>(std::exp(log_below) * share));
    }
  }
}

}  // namespace

double DepthDistribution::Above(int64_t m) const {
  if (m < first) {
    return 1;
  }
  return m - first < static_cast<int64_t>(above.size()) ? above[m - first] : 0;
}

DepthDistribution Depths(int64_t k, int64_t lanes) {
  DepthDistribution result;
  result.first = (k + lanes - 1) / lanes;
  if (k <= kMaxExactDepths || lanes == 1) {
    ExactDepths(k, lanes, result);
  } else {
    PoissonDepths(k, lanes, result);
  }
  result.above.resize(result.pmf.size());
  double sum = 0;
  for (size_t i = result.pmf.size(); i-- > 0;) {
    result.above[i] = std::min(sum, 1.0);
    sum += result.pmf[i];
  }
  return result;
}

}  // namespace riffle
