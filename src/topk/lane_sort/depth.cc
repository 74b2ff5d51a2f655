#include "topk/lane_sort/depth.h"

#include <hwy/base.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <optional>

namespace riffle::topk {
namespace {

// With f_m(x) = sum_{j<=m} x^j / j!,
//
//   P(depth = m) = k! / N^k [x^k] D(x),  D = f_m^N - f_{m-1}^N.
//
// The coefficients of D are not negative. So Cauchy's formula over a circle of radius r, by the
// trapezoidal rule, loses nothing to cancellation if r is near the saddle point, where the
// coefficients of D(r x) have their mean at k: the result is then about 1 / sd of the largest term,
// however small the probability is. D itself is a^N - b^N = b^N ((1 + t / b)^N - 1) with a = f_m, b
// = f_{m-1}, t = x^m / m!, computed by log1p and expm1. We first tried the recurrence f (f^N)' = N
// f' f^N: for k > N it has terms of both signs and loses the lower tail entirely.

// Long doubles: the sum of the logarithms is small, but the logarithms themselves are large.
using Real = long double;

constexpr Real kLogSmallest = -745.2L;  // log of the smallest positive double
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
          y * (1.0L / 360 -
               y * (1.0L / 1260 - y * (1.0L / 1680 - y * (1.0L / 1188 - y * (691.0L / 360360)))))) /
             x;
}

// log P(Binomial(k, 1 / lanes) = m), lanes > 1.
Real LogBinomial(int64_t k, int64_t lanes, int64_t m) {
  const Real n = static_cast<Real>(lanes);
  return LogFactorial(k) - LogFactorial(m) - LogFactorial(k - m) -
         static_cast<Real>(m) * std::log(n) + static_cast<Real>(k - m) * std::log1p(-1 / n);
}

// P(depth = m) when a second lane cannot matter: the expected number of lanes with exactly m.
double OneLane(int64_t k, int64_t lanes, int64_t m) {
  if (lanes == 1) {
    return m == k ? 1.0 : 0.0;
  }
  return static_cast<double>(static_cast<Real>(lanes) * std::exp(LogBinomial(k, lanes, m)));
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
Complex Plus(Complex x, Complex y) { return {x.re + y.re, x.im + y.im}; }
Complex Minus(Complex x, Complex y) { return {x.re - y.re, x.im - y.im}; }
Complex Times(double x, Complex y) { return {x * y.re, x * y.im}; }
Complex Times(Complex x, Complex y) {
  return {x.re * y.re - x.im * y.im, x.re * y.im + x.im * y.re};
}
Complex Over(Complex x, Complex y) {
  const double norm = y.re * y.re + y.im * y.im;
  return {(x.re * y.re + x.im * y.im) / norm, (x.im * y.re - x.re * y.im) / norm};
}
double Size(Complex z) { return std::hypot(z.re, z.im); }

// The sum, mean and variance of weights at consecutive integers.
struct Moments {
  Real sum = 0, sum1 = 0, sum2 = 0;
  int64_t count = 0;

  void Add(Real weight) {
    const Real offset = static_cast<Real>(count++);
    sum += weight;
    sum1 += weight * offset;
    sum2 += weight * offset * offset;
  }
  Real Mean() const { return sum1 / sum; }  // as an offset from the first
  Real Variance() const { return std::max<Real>(0, sum2 / sum - Mean() * Mean()); }
};

// D on a circle of radius r, for one m after another.
class Circle {
 public:
  Circle(int64_t k, int64_t lanes, int64_t m, Real r);
  void Next();  // moves on to m + 1

  // How much the mean of the coefficients of D(r x) exceeds k; Deviation is (at least) their
  // standard deviation.
  Real Excess() const { return mean_ - static_cast<Real>(k_); }
  Real Deviation() const { return deviation_; }
  // Whether r is close enough to the saddle point for Probability to be exact.
  bool NearSaddle() const;
  double Probability();  // P(depth = m)

 private:
  void Measure();
  void Place();
  int64_t PointsNeeded() const;
  Complex At(int64_t point) const;

  const int64_t k_, lanes_;
  const Real r_;
  int64_t m_;
  int64_t first_ = 0;    // terms of f_{m-1} before this one are negligible
  std::vector<Real> q_;  // r^j / j! / exp(log_scale), j = first..m-1
  Real log_scale_ = 0;
  Moments below_;  // of q_
  Real t_ = 0;     // the next term, of j = m

  Real log_ratio_ = 0;  // N log(f_m / f_{m-1})
  Real mean_ = 0, deviation_ = 0;
  std::vector<Complex> roots_;  // exp(2 pi i p / points) - 1, whose small parts log1p keeps
  std::vector<Complex> sums_;   // f_{m-1}(r exp(2 pi i p / points)) - f_{m-1}(r), p <= points / 2
};

Circle::Circle(int64_t k, int64_t lanes, int64_t m, Real r) : k_(k), lanes_(lanes), r_(r), m_(m) {
  const int64_t mode = std::min(m - 1, static_cast<int64_t>(r));
  log_scale_ = static_cast<Real>(mode) * std::log(r) - LogFactorial(mode);
  constexpr Real kCutoff = 1e-24L;
  Real term = 1;
  for (first_ = mode; first_ > 0 && term > kCutoff; --first_) {
    term *= static_cast<Real>(first_) / r;
    q_.push_back(term);
  }
  std::reverse(q_.begin(), q_.end());
  q_.push_back(1);
  for (int64_t j = mode + 1; j < m; ++j) {
    q_.push_back(q_.back() * r / static_cast<Real>(j));
  }
  for (const Real q : q_) {
    below_.Add(q);
  }
  t_ = q_.back() * r / static_cast<Real>(m);
  Measure();
}

void Circle::Next() {
  const auto points = static_cast<int64_t>(roots_.size());
  for (int64_t p = 0; p < static_cast<int64_t>(sums_.size()); ++p) {
    sums_[p] = Plus(sums_[p], Times(static_cast<double>(t_), roots_[p * m_ % points]));
  }
  q_.push_back(t_);
  below_.Add(t_);
  ++m_;
  t_ *= r_ / static_cast<Real>(m_);
  Measure();
}

// With A and B the means of a = f_m and b = f_{m-1}, that of a^N - b^N is
// N (a^N A - b^N B) / (a^N - b^N).
void Circle::Measure() {
  const Real n = static_cast<Real>(lanes_);
  const Real origin = static_cast<Real>(first_);
  Moments all = below_;
  all.Add(t_);
  deviation_ = std::sqrt(n * all.Variance());
  log_ratio_ = n * std::log1p(t_ / below_.sum);
  if (log_ratio_ < 1e-6L) {  // then D = N t b^(N-1), to within about this relative error
    mean_ = static_cast<Real>(m_) + (n - 1) * (origin + below_.Mean());
  } else {
    const Real difference = all.Mean() - std::exp(-log_ratio_) * below_.Mean();
    mean_ = n * (origin + difference / -std::expm1(-log_ratio_));
  }
}

// The trapezoidal rule gives the sum of the coefficients of x^k, x^(k +- points), ... Those more
// than ten deviations from k are negligible.
int64_t Circle::PointsNeeded() const {
  return std::min(static_cast<int64_t>(10 * (deviation_ + std::fabs(Excess()))) + 64,
                  m_ * lanes_ + 1);
}

bool Circle::NearSaddle() const {
  return std::fabs(Excess()) <= deviation_ &&
         (roots_.empty() || PointsNeeded() <= static_cast<int64_t>(roots_.size()));
}

void Circle::Place() {
  const int64_t points = PointsNeeded() * 5 / 4;
  roots_.resize(points);
  for (int64_t p = 0; p < points; ++p) {
    const double angle =
        2 * std::numbers::pi * static_cast<double>(p) / static_cast<double>(points);
    const double half_sine = std::sin(0.5 * angle);
    roots_[p] = {-2 * half_sine * half_sine, std::sin(angle)};
  }
  const std::vector<double> weights(q_.begin(), q_.end());
  sums_.resize(points / 2 + 1);
  for (int64_t p = 0; p <= points / 2; ++p) {
    int64_t root = first_ % points * p % points;
    for (const double weight : weights) {
      sums_[p] = Plus(sums_[p], Times(weight, roots_[root]));
      root += p;
      root -= root >= points ? points : 0;
    }
  }
}

// D(r exp(2 pi i p / points)) / f_m(r)^N.
Complex Circle::At(int64_t point) const {
  const double n = static_cast<double>(lanes_);
  const double t0 = static_cast<double>(t_);
  const double b0 = static_cast<double>(below_.sum);
  const Complex root = roots_[point * m_ % static_cast<int64_t>(roots_.size())];
  const Complex t{t0 * (1 + root.re), t0 * root.im};
  const Complex b{b0 + sums_[point].re, sums_[point].im};
  const Complex log_b = Times(n, Log1p(Times(1 / b0, sums_[point])));
  const Complex b_power = Exp({log_b.re - static_cast<double>(log_ratio_), log_b.im});
  if (n * Size(t) < Size(b)) {
    return Times(b_power, Expm1(Times(n, Log1p(Over(t, b)))));
  }
  const Complex a = Times(1 / (b0 + t0), Plus(sums_[point], Times(t0, root)));
  return Minus(Exp(Times(n, Log1p(a))), b_power);
}

double Circle::Probability() {
  const Real n = static_cast<Real>(lanes_);
  const Real log_scale = LogFactorial(k_) - static_cast<Real>(k_) * std::log(n * r_) +
                         n * (std::log(below_.sum + t_) + log_scale_);
  if (log_scale + std::log(-std::expm1(-log_ratio_)) < kLogSmallest) {
    return 0;
  }
  if (roots_.empty()) {
    Place();
  }
  const auto points = static_cast<int64_t>(roots_.size());
  const double largest = At(0).re;
  double sum = 0;
  int negligible = 0;  // how many in a row
  for (int64_t p = 0; p <= points / 2 && negligible < 8; ++p) {
    const Complex d = At(p);
    negligible = Size(d) < 1e-20 * largest ? negligible + 1 : 0;
    const Complex turn = roots_[p * (k_ % points) % points];
    const double term = d.re * (1 + turn.re) + d.im * turn.im;
    sum += p == 0 || 2 * p == points ? term : 2 * term;
  }
  const Real share = static_cast<Real>(std::max(sum, 0.0)) / static_cast<Real>(points);
  return static_cast<double>(std::exp(log_scale + std::log(share)));
}

// A circle within a fraction of a deviation of the saddle point.
Circle AtSaddle(int64_t k, int64_t lanes, int64_t m) {
  Real low = static_cast<Real>(k) / static_cast<Real>(lanes);
  Real high = low;
  while (Circle(k, lanes, m, low).Excess() > 0) {
    low /= 2;
  }
  while (Circle(k, lanes, m, high).Excess() < 0) {
    high *= 2;
  }
  for (;;) {
    const Real r = std::sqrt(low * high);
    const Circle circle(k, lanes, m, r);
    if (std::fabs(circle.Excess()) <= 0.25L * circle.Deviation() || high <= low * 1.0001L) {
      return circle;
    }
    (circle.Excess() < 0 ? low : high) = r;
  }
}

// P(depth = k / lanes): every lane has the same number.
double AllEqual(int64_t k, int64_t lanes) {
  const Real n = static_cast<Real>(lanes);
  return static_cast<double>(
      std::exp(LogFactorial(k) - n * LogFactorial(k / lanes) - static_cast<Real>(k) * std::log(n)));
}

// P(depth = m) for m from result.first on, until it vanishes.
void ExactDepths(int64_t k, int64_t lanes, DepthDistribution& result) {
  std::optional<Circle> circle;
  bool one_lane = lanes == 1;
  for (int64_t m = result.first; m <= k; ++m) {
    double p = 0;
    one_lane = one_lane || m > k / 2;
    if (one_lane) {
      p = OneLane(k, lanes, m);
      if (p == 0) {
        return;
      }
    } else if (m * lanes == k) {
      p = AllEqual(k, lanes);
    } else {
      if (circle) {
        circle->Next();
      }
      if (!circle || !circle->NearSaddle()) {
        circle.emplace(AtSaddle(k, lanes, m));
      }
      p = circle->Probability();
      one_lane = !result.pmf.empty() && p < result.pmf.back() && p < kNegligible;
    }
    result.pmf.push_back(p);
  }
}

// P(depth <= m) = P(Binomial(k, 1 / lanes) <= m)^lanes, as if the lanes were independent.
void BinomialDepths(int64_t k, int64_t lanes, DepthDistribution& result) {
  const Real n = static_cast<Real>(lanes);
  const auto reach = static_cast<int64_t>(12 * std::sqrt(static_cast<Real>(k) / n)) + 64;
  const int64_t end = std::min(k, result.first + reach);
  std::vector<Real> terms;  // of the lane's distribution, from result.first on
  for (int64_t m = result.first; m <= end; ++m) {
    terms.push_back(std::exp(LogBinomial(k, lanes, m)));
  }
  std::vector<Real> tails(terms.size() + 1, 0);  // [i]: P(a lane has >= first + i)
  for (size_t i = terms.size(); i-- > 0;) {
    tails[i] = tails[i + 1] + terms[i];
  }
  result.pmf.push_back(static_cast<double>(std::exp(n * std::log1p(-tails[1]))));
  for (size_t i = 1; i < terms.size(); ++i) {
    const Real within = n * std::log1p(-tails[i + 1]);
    const Real within_less = n * std::log1p(-tails[i]);
    result.pmf.push_back(static_cast<double>(-std::exp(within) * std::expm1(within_less - within)));
  }
}

}  // namespace

double DepthDistribution::Within(int64_t m) const {
  const int64_t at = std::min(m - first, static_cast<int64_t>(within.size()) - 1);
  return at < 0 ? 0 : within[at];
}

double DepthDistribution::Above(int64_t m) const {
  const int64_t at = m - first;
  return at < 0 ? 1 : at < static_cast<int64_t>(above.size()) ? above[at] : 0;
}

DepthDistribution Depths(int64_t k, int64_t lanes) {
  HWY_DASSERT(k >= 1 && lanes >= 1);
  DepthDistribution result;
  result.first = (k + lanes - 1) / lanes;
  if (k <= kMaxExactDepths || lanes == 1) {
    ExactDepths(k, lanes, result);
  } else {
    BinomialDepths(k, lanes, result);
  }
  double sum = 0;
  for (const double p : result.pmf) {
    sum += p;
    result.within.push_back(std::min(sum, 1.0));
  }
  result.above.resize(result.pmf.size());
  sum = 0;
  for (size_t i = result.pmf.size(); i-- > 0;) {
    result.above[i] = std::min(sum, 1.0);
    sum += result.pmf[i];
  }
  return result;
}

}  // namespace riffle::topk
