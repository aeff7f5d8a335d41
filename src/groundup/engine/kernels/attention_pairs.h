// Attention to keys and values in bfloat16 where the machine multiplies these in pairs, two products an instruction.
// Included once for the levels that do.
//
// Numbers that are summed over, dimensions of a key and keys of a value, stand side by side. Queries and weights are
// rounded to bfloat16 too; the sum of weights is that of the rounded ones, so that these still make 1 together.

INLINE U paired(H first, H second) { return widen(first) | widen(second) << 16; }

INLINE H load_halves(const uint16_t* from) {
  H x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

INLINE U load(const uint32_t* from) {
  U x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

// A span whose numbers are paired as they are needed: of two dimensions the keys of a strip, of two keys the values of a
// head. Where the last dimension or key has no other beside it, zeros stand there.
struct LoosePairs : Span<uint16_t> {
  int64_t dim, padded;

  INLINE_MEMBER U keys_of(int64_t strip, int64_t pair) const {
    const Strip<uint16_t>& from = strips[strip];
    const uint16_t* first = from.keys + 2 * pair * from.key_stride;
    return paired(load_halves(first), 2 * pair + 1 < dim ? load_halves(first + from.key_stride) : H{});
  }
  INLINE_MEMBER U values_of(int64_t pair, int64_t d) const {
    const Strip<uint16_t>& from = strips[2 * pair / kStrip];
    const int64_t key = 2 * pair % kStrip;
    const uint16_t* first = from.values + key * padded + d;
    if (key >= from.there) return U{};
    return paired(load_halves(first), key + 1 < from.there ? load_halves(first + padded) : H{});
  }
};

// The same in the tile's memory: cheaper once than for every few rows again.
struct KeptPairs : Span<uint16_t> {
  const uint32_t *keys, *values;
  int64_t pairs, padded;

  INLINE_MEMBER U keys_of(int64_t strip, int64_t pair) const { return load(keys + (strip * pairs + pair) * kStrip); }
  INLINE_MEMBER U values_of(int64_t pair, int64_t d) const { return load(values + pair * padded + d); }
};

static KeptPairs kept(AttentionTile& tile, const LoosePairs& span) {
  const int64_t pairs = (span.dim + 1) / 2;
  const auto keep = [](uint32_t* to, U both) { std::memcpy(to, &both, sizeof both); };
  for (int64_t s = 0; s < span.count; ++s) {
    for (int64_t p = 0; p < pairs; ++p) keep(tile.paired_keys + (s * pairs + p) * kStrip, span.keys_of(s, p));
  }
  for (int64_t p = 0; p < span.count * kStrip / 2; ++p) {
    for (int64_t d = 0; d < span.padded; d += W) keep(tile.paired_values + p * span.padded + d, span.values_of(p, d));
  }
  return {span, tile.paired_keys, tile.paired_values, pairs, span.padded};
}

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
template <int kRows, int kStrips, typename Pairs>
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
template <int kRows, int kVectors, typename Pairs>
static void blend(AttentionTile& tile, int64_t r, const Pairs& span, int64_t d, int64_t padded) {
  float* sums = tile.sums + r * padded + d;
  const uint32_t* weights = tile.paired_weights + r * kSpanKeys / 2;
  F total[kRows][kVectors];
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[i][v] = load(sums + i * padded + v * W);
  }
  for (int64_t p = 0; p < span.count * kStrip / 2; ++p) {
    U values[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) values[v] = span.values_of(p, d + v * W);
#pragma GCC unroll 4
    for (int i = 0; i < kRows; ++i) {
      const U weight = U{} + weights[i * kSpanKeys / 2 + p];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) total[i][v] = dot_pairs(total[i][v], weight, values[v]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < kRows; ++i) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + i * padded + v * W, total[i][v]);
  }
}
