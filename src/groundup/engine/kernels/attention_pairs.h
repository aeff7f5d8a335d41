// Attention to keys and values in bfloat16 where the machine multiplies these in pairs, two products an instruction.
// Included once for the levels that do.
//
// Numbers that are summed over, dimensions of a key and keys of a value, stand side by side. Queries and weights are
// rounded to bfloat16 too; the sum of weights is that of the rounded ones, so that these still make 1 together.

// A span as it lies in its blocks.
struct Pairs : Span<uint16_t> {
  int64_t padded;

  // Two dimensions of the keys of a strip; two values of a strip in W dimensions from d on.
  INLINE_MEMBER U keys_of(int64_t strip, int64_t pair) const {
    return load_as<U>(strips[strip].keys + pair * strips[strip].key_stride);
  }
  INLINE_MEMBER U values_of(int64_t strip, int64_t pair, int64_t d) const {
    return load_as<U>(strips[strip].values + 2 * (pair * padded + d));
  }
};

// The query of row r, and zero behind its last dimension if that has no other beside it.
static void pair_query(AttentionTile& tile, int64_t r, int64_t dim) {
  const int64_t pairs = (dim + 1) / 2;
  uint16_t narrow[kMaxHeadDim + W];
  for (int64_t d = 0; d < 2 * pairs; d += W) store(narrow + d, load(tile.queries + r * dim + d, dim - d));
  std::memcpy(tile.paired_queries + r * pairs, narrow, pairs * sizeof(uint32_t));
}

// As the weights of other spans, but rounded.
INLINE F keep_weights(AttentionTile& tile, int64_t r, int64_t key, F weights, const Span<uint16_t>&) {
  const H narrow = to_bfloat16(weights);
  std::memcpy(tile.paired_weights + (r * kSpanKeys + key) / 2, &narrow, sizeof narrow);
  return (F)(widen(narrow) << 16);
}

// Scores of kRows rows from r on against kStrips strips from the first on; two chains of pairs of dimensions.
template <int kRows, int kStrips>
static void score(AttentionTile& tile, int64_t r, const Pairs& span, int64_t first_strip, int64_t dim) {
  const int64_t pairs = (dim + 1) / 2;
  const uint32_t* queries = tile.paired_queries + r * pairs;
  float* sums = tile.weights + r * kSpanKeys + first_strip * kStrip;
  F even[kRows][kStrips] = {}, odd[kRows][kStrips] = {};
  const auto step = [&](int64_t p, F(&scores)[kRows][kStrips]) __attribute__((always_inline)) {
#pragma GCC unroll 2
    for (int v = 0; v < kStrips; ++v) {
      const U keys = span.keys_of(first_strip + v, p);
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) scores[i][v] = dot_pairs(scores[i][v], U{} + queries[i * pairs + p], keys);
    }
  };
  for (int64_t p = 0; p + 1 < pairs; p += 2) step(p, even), step(p + 1, odd);
  if (pairs % 2) step(pairs - 1, even);
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kStrips; ++v) store(sums + i * kSpanKeys + v * W, even[i][v] + odd[i][v]);
  }
}

// sums += weights · values for kRows rows from r on and kVectors vectors of the head from `d` on.
template <int kRows, int kVectors>
static void blend(AttentionTile& tile, int64_t r, const Pairs& span, int64_t d, int64_t padded) {
  float* sums = tile.sums + r * padded + d;
  F total[kRows][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[i][v] = load(sums + i * padded + v * W);
  }
  for (int64_t s = 0; s < span.count; ++s) {
    const uint32_t* weights = tile.paired_weights + (r * kSpanKeys + s * kStrip) / 2;
    const auto step = [&](int64_t p, uint32_t mask) __attribute__((always_inline)) {
      U values[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) values[v] = span.values_of(s, p, d + v * W) & mask;
#pragma GCC unroll 4
      for (int i = 0; i < kRows; ++i) {
        const U weight = U{} + weights[i * kSpanKeys / 2 + p];
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) total[i][v] = dot_pairs(total[i][v], weight, values[v]);
      }
    };
    const int64_t there = span.strips[s].there;
    for (int64_t p = 0; p < there / 2; ++p) step(p, ~0u);
    if (there % 2) step(there / 2, 0xffff);  // beside the last key there is none
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + i * padded + v * W, total[i][v]);
  }
}
