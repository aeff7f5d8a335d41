// What a choice needs to know of neighbouring logits: see Peak. Included once for every level.

// Logits that have one.
constexpr int64_t kPeakLogits = kTilePanels * kPanel;

// As many of W logits as are left, -infinity for the others.
INLINE F load_logits(const float* from, int64_t left) {
  if (left >= W) return load(from);
  F x = splat(-INFINITY);
  if (left > 0) std::memcpy(&x, from, left * sizeof(float));
  return x;
}

// Of the first kPeakLogits of x, of which `left` are left.
INLINE Peak peak_of(const float* x, int64_t left) {
  F largest = splat(-INFINITY), total = {};
#pragma GCC unroll 4
  for (int64_t i = 0; i < kPeakLogits; i += W) {
    const F here = load_logits(x + i, left - i);
    largest = max(here, largest), total += power_of_two<fma>(here * kLog2E);
  }
  return {reduce_max(largest), reduce_add(total)};
}
