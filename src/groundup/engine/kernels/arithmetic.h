// Vectors from and to memory, also in part, and the functions of a model's layers. Included once for every level.

INLINE F to_float(I x) { return __builtin_convertvector(x, F); }

INLINE F load(const float* from) {
  F x;
  std::memcpy(&x, from, sizeof x);
  return x;
}
INLINE F load(const uint16_t* from) {  // bfloat16: the upper half of a float32
  H x;
  std::memcpy(&x, from, sizeof x);
  return (F)(widen(x) << 16);
}
INLINE F load(const int8_t* from) {
  S x;
  std::memcpy(&x, from, sizeof x);
  return to_float(widen(x));
}
INLINE void store(float* to, F x) { std::memcpy(to, &x, sizeof x); }
INLINE void store(uint16_t* to, F x) {  // as bfloat16, to the nearest, halves to even
  const U bits = (U)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const H halves = narrow(x == x ? rounded : (bits >> 16 | 0x40));
  std::memcpy(to, &halves, sizeof halves);
}

// As many of W numbers as are left, zeros for the others.
INLINE F load(const float* from, int64_t left) {
  if (left >= W) return load(from);
  F x = {};
  if (left > 0) std::memcpy(&x, from, left * sizeof(float));
  return x;
}
INLINE void store(float* to, F x, int64_t left) {
  if (left >= W) store(to, x);
  else if (left > 0) std::memcpy(to, &x, left * sizeof(float));
}

template <typename Vector>
INLINE Vector load_as(const void* from) {
  Vector x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// As much of it as there is in `left` numbers, zeros behind.
template <typename Vector, typename Number>
INLINE Vector load_part(const Number* from, int64_t left) {
  if (left * static_cast<int64_t>(sizeof(Number)) >= static_cast<int64_t>(sizeof(Vector))) return load_as<Vector>(from);
  Vector x = {};
  if (left > 0) std::memcpy(&x, from, left * sizeof(Number));
  return x;
}

// Calls `each` with the place of every vector of `width` numbers, and how many of its numbers there are: known when this is
// compiled for all but the last.
template <typename Each>
INLINE void each_vector(int64_t width, const Each& each) {
  int64_t i = 0;
  for (; i + W <= width; i += W) each(i, std::integral_constant<int64_t, W>{});
  if (i < width) each(i, width - i);
}

// The same for sums, and which of kChains sums a vector may be added to: one alone would wait for each of its additions.
constexpr int kChains = 4;
template <typename Each>
INLINE void each_chained(int64_t width, const Each& each) {
  int64_t i = 0;
  for (; i + kChains * W <= width; i += kChains * W) {
#pragma GCC unroll 4
    for (int c = 0; c < kChains; ++c) each(i + c * W, std::integral_constant<int64_t, W>{}, c);
  }
  for (; i < width; i += W) each(i, width - i, 0);
}

INLINE F total_of(const F (&chains)[kChains]) { return (chains[0] + chains[1]) + (chains[2] + chains[3]); }

INLINE I lanes() {  // 0, 1, 2, …
  I out;
  for (int i = 0; i < W; ++i) out[i] = i;
  return out;
}

INLINE F max(F a, F b) { return a > b ? a : b; }
INLINE I max(I a, I b) { return a > b ? a : b; }
INLINE F abs(F x) { return (F)((I)x & 0x7fffffff); }

// Adding 1.5 · 2²³ leaves no bits behind the point: the sum's last bits are the nearest integer, halves to even.
constexpr float kRounder = 12582912.0f;
INLINE F round(F x) { return (x + kRounder) - kRounder; }
INLINE I round_to_int(F x) { return (I)(x + kRounder) - (I)splat(kRounder); }  // |x| < 2²²

constexpr float kLog2E = 1.44269504f;

// eˣ within 2 units in the last place; 0 below -87.3, finite above 88.3, not a number where x is none.
// x = n ln 2 + r with |r| ≤ ln 2 / 2, then Taylor's series of eʳ to the sixth power. exp(0) is exactly 1.
INLINE F exp(F x) {
  const F bounded = x > 88.3f ? splat(88.3f) : x < -87.3f ? splat(-87.3f) : x;
  const F n = round(bounded * kLog2E);
  F r = fma(n, splat(-0.693359375f), bounded);
  r = fma(n, splat(2.12194440e-4f), r);
  F series = splat(1.0f / 720);
  for (const float factor : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) series = fma(series, r, splat(factor));
  const F power = (F)((round_to_int(n) + 127) << 23);
  return x < -87.3f ? splat(0.0f) : series * power;
}

INLINE F multiply_then_add(F a, F b, F c) { return a * b + c; }

// 2 to the power of x < 127, and anything from there on; 0 below -127, 1 for 0, and not a number where x is none. Within
// 2e-7 of itself from 2⁻¹²⁶ on.
// x = n + f with |f| ≤ ½; 2ᶠ is the polynomial of fifth degree with the least largest error, 2ⁿ is added to its exponent.
template <F (*multiply_add)(F, F, F)>
INLINE F power_of_two(F x) {
  const F bounded = max(splat(-127.0f), x);
  const F shifted = bounded + kRounder, f = bounded - (shifted - kRounder);
  F series = splat(0.00132647273f);
  for (const float factor : {0.00967151299f, 0.0555073358f, 0.240222424f, 0.693147004f, 1.0f}) {
    series = multiply_add(series, f, splat(factor));
  }
  return (F)((U)series + ((U)shifted << 23));
}

// e⁻ˣ is taken as e⁸⁷ at most: what is below -87 hardly differs from 0.
INLINE F sigmoid(F x) {
  const F power = -kLog2E * x;
  return 1.0f / (1.0f + power_of_two<fma>(power > 126.0f ? splat(126.0f) : power));
}
INLINE F tanh(F x) { return 1.0f - 2.0f / (1.0f + exp(x + x)); }  // absolute error 2e-7

// Within 2e-7: Abramowitz and Stegun, formula 7.1.26.
INLINE F erf(F x) {
  const F t = 1.0f / (1.0f + 0.3275911f * abs(x));
  F series = splat(1.061405429f);
  for (const float factor : {-1.453152027f, 1.421413741f, -0.284496736f, 0.254829592f}) {
    series = fma(series, t, splat(factor));
  }
  const F size = 1.0f - series * t * exp(-(x * x));
  return x < 0.0f ? -size : size;
}

// What numbers are multiplied by to become int8, 127 / largest, and by what these are to be multiplied. Below a size that
// matters both are 0; where not all are finite, the scale is not a number.
struct Scale {
  float scale, inverse;
  bool is_finite;
};

static Scale scale_of(const float* x, int64_t width) {
  constexpr int32_t kInfinite = 0x7f800000;  // the bits of what is not finite are no less, those of numbers rise with them
  I largest[kChains] = {};
  each_chained(width, [&](int64_t i, auto left, int chain) __attribute__((always_inline)) {
    const I size = (I)load(x + i, left) & 0x7fffffff;
    largest[chain] = max(largest[chain], size);
  });
  const I all = max(max(largest[0], largest[1]), max(largest[2], largest[3]));
  const float top = reduce_max((F)(all > kInfinite ? splat(kInfinite) : all));
  if (top == INFINITY) return {NAN, 0.0f, false};
  return top > kSmallest ? Scale{top / 127.0f, 127.0f / top, true} : Scale{0.0f, 0.0f, true};
}
