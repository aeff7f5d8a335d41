// Attention of queries to keys and values in blocks. Included once for every level.
//
// A tile of up to 16 rows (a row is one head of one token, all of one key-value head) passes over the keys in spans of a
// few strips of 16, from the first key that any of them sees, and keeps for each row a score that hardly any so far is
// larger than, the sum of weights and the weighted sum of values: the softmax of Milakov and Gimelshein 2018, in tiles
// as Dao et al. 2022.
// Spans lie where they lie in the text and what a row does not see adds exact zeros, so a row's result depends on no
// other row.

constexpr int64_t kTile = 16;
constexpr int kStripVectors = kStrip / W;
constexpr int64_t kSpanKeys = kSpan * kStrip;
constexpr float kLowest = -1e38f;  // below every score, and finite: e to the difference of two of them is a number
// Scores may be larger than the one that weights are made by, up to this: e⁸ is no matter for a float, and then few
// spans make all smaller that was summed before.
constexpr float kHeadroom = 8.0f;
// Strips whose scores are summed at once.
constexpr int kScored = kSpan > 1 ? 2 : 1;

struct AttentionTile {
  int64_t sequence, kv_head, rows;
  int64_t first_key[kTile], end_key[kTile];  // what each row sees
  float* out[kTile];
  alignas(64) float queries[kTile * kMaxHeadDim];  // times scale
  alignas(64) float sums[kTile * kMaxHeadDim];     // of values, padded rows
  alignas(64) float weights[kTile * kSpanKeys];
  float largest[kTile];                      // the score that weights are made by
  F total[kTile];                            // of weights, lane by lane
  float wide_keys[kSpanKeys * kMaxHeadDim];  // of a span, if they are widened for all rows
  float wide_values[kSpanKeys * kMaxHeadDim];
#if GROUNDUP_LEVEL >= 3
  // Queries and weights in bfloat16, two numbers of a sum side by side.
  uint32_t paired_queries[kTile * kMaxHeadDim / 2], paired_weights[kTile * kSpanKeys / 2];
#endif
};

// What a tile is about: so many tiles into the rows of a sequence and head. Threads share out [sequence][kv_head][tile].
struct AttentionItem {
  int64_t sequence, kv_head, tile;
};

static int64_t tiles_of(const AttentionJob& job, int64_t sequence) {
  const int64_t tokens = job.query_starts[sequence + 1] - job.query_starts[sequence];
  return (tokens * (job.heads / job.blocks.kv_heads) + kTile - 1) / kTile;
}

static int64_t attention_items(const AttentionJob& job) {
  int64_t items = 0;
  for (int64_t s = 0; s < job.sequences; ++s) items += tiles_of(job, s) * job.blocks.kv_heads;
  return items;
}

static AttentionItem item_at(const AttentionJob& job, int64_t number) {
  int64_t sequence = 0;
  while (number >= tiles_of(job, sequence) * job.blocks.kv_heads) {
    number -= tiles_of(job, sequence++) * job.blocks.kv_heads;
  }
  return {sequence, number / tiles_of(job, sequence), number % tiles_of(job, sequence)};
}

// The one behind it, which there must be.
static AttentionItem item_after(const AttentionJob& job, AttentionItem item) {
  if (++item.tile < tiles_of(job, item.sequence)) return item;
  item.tile = 0;
  if (++item.kv_head < job.blocks.kv_heads) return item;
  item.kv_head = 0;
  do ++item.sequence;
  while (tiles_of(job, item.sequence) == 0);
  return item;
}

// The key behind the last one that the row sees, and the first one.
static int64_t end_key_of(const AttentionJob& job, int64_t sequence, int64_t row) {
  const int64_t tokens = job.query_starts[sequence + 1] - job.query_starts[sequence];
  return job.key_counts[sequence] - tokens + row / (job.heads / job.blocks.kv_heads) + 1;
}
static int64_t first_key_of(const AttentionJob& job, int64_t sequence, int64_t row) {
  return job.window > 0 ? std::max<int64_t>(0, end_key_of(job, sequence, row) - job.window) : 0;
}

// Strips that follow each other and whose keys a row is weighed against together.
template <typename Element>
struct Span {
  Strip<Element> strips[kSpan];
  int64_t count;
};

#if GROUNDUP_LEVEL >= 3
#include "attention_pairs.h"
#endif

static void begin_tile(const AttentionJob& job, const AttentionItem& item, AttentionTile& tile) {
  const int64_t group = job.heads / job.blocks.kv_heads, dim = job.blocks.head_dim;
  const int64_t start = job.query_starts[item.sequence], tokens = job.query_starts[item.sequence + 1] - start;
  const int64_t padded = (dim + kPanel - 1) / kPanel * kPanel, first_row = item.tile * kTile;
  tile.sequence = item.sequence, tile.kv_head = item.kv_head, tile.rows = std::min(kTile, tokens * group - first_row);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t row = start + (first_row + r) / group, head = tile.kv_head * group + (first_row + r) % group;
    tile.end_key[r] = end_key_of(job, item.sequence, first_row + r);
    tile.first_key[r] = first_key_of(job, item.sequence, first_row + r);
    tile.out[r] = job.out + row * job.out_stride + head * dim;
    const float* query = job.queries + row * job.query_stride + head * dim;
    for (int64_t d = 0; d < dim; ++d) tile.queries[r * dim + d] = query[d] * job.scale;
#if GROUNDUP_LEVEL >= 3
    if (job.blocks.bits == 16) pair_query(tile, r, dim);
#endif
    std::fill_n(tile.sums + r * padded, padded, 0.0f);
    // A sink is a key that was seen first and has no value.
    tile.largest[r] = job.sinks == nullptr ? kLowest : job.sinks[head];
    tile.total[r] = F{};
    tile.total[r][0] = job.sinks == nullptr ? 0.0f : 1.0f;
  }
}

// One dimension of the products of kRows queries with kStrips strips of keys.
template <int kRows, int kStrips, typename Element>
INLINE void score_step(const float* queries, const Strip<Element>* strips, int64_t d, int64_t dim,
                       F (&scores)[kRows][kStrips * kStripVectors]) {
#pragma GCC unroll 8
  for (int v = 0; v < kStrips * kStripVectors; ++v) {
    const Strip<Element>& strip = strips[v / kStripVectors];
    const F key = keys_at(strip, d, v % kStripVectors * W);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) scores[r][v] = fma(splat(queries[r * dim + d]), key, scores[r][v]);
  }
}

// Scores of kRows rows against kStrips strips from the first on; odd and even dimensions are summed apart, for two
// chains are faster.
template <int kRows, int kStrips, typename Element>
static void score(AttentionTile& tile, int64_t first_row, const Span<Element>& span, int64_t first_strip, int64_t dim) {
  const float* queries = tile.queries + first_row * dim;
  float* scores = tile.weights + first_row * kSpanKeys + first_strip * kStrip;
  F even[kRows][kStrips * kStripVectors] = {}, odd[kRows][kStrips * kStripVectors] = {};
  for (int64_t d = 0; d + 1 < dim; d += 2) {
    score_step<kRows, kStrips>(queries, span.strips + first_strip, d, dim, even);
    score_step<kRows, kStrips>(queries, span.strips + first_strip, d + 1, dim, odd);
  }
  if (dim % 2) score_step<kRows, kStrips>(queries, span.strips + first_strip, dim - 1, dim, even);
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
    for (int v = 0; v < kStrips * kStripVectors; ++v) store(scores + r * kSpanKeys + v * W, even[r][v] + odd[r][v]);
  }
}

// Keeps W weights of row r from `key` of the span on, times the scales of their values if these are int8; returns what
// counts towards their sum.
template <typename Element>
INLINE F keep_weights(AttentionTile& tile, int64_t r, int64_t key, F weights, const Span<Element>& span) {
  const float* scales = span.strips[key / kStrip].value_scales;
  store(tile.weights + r * kSpanKeys + key, scales == nullptr ? weights : weights * load(scales + key % kStrip));
  return weights;
}

// W scores of a strip from `lane` on, minus infinity for keys that the row does not see.
template <typename Strip>
INLINE F seen(const AttentionTile& tile, int64_t r, const Strip& strip, int64_t lane, F scores) {
  const int64_t first = tile.first_key[r] - strip.begin - lane, end = tile.end_key[r] - strip.begin - lane;
  if (first <= 0 && end >= W) return scores;
  const auto from = static_cast<int32_t>(std::clamp<int64_t>(first, 0, W));
  const auto until = static_cast<int32_t>(std::clamp<int64_t>(end, 0, W));
  return ((lanes() >= from) & (lanes() < until)) ? scores : splat(-INFINITY);
}

// From scores to weights e^(score - largest), in place; what was summed under a much smaller largest one shrinks.
template <typename Span>
static void weigh(const AttentionJob& job, AttentionTile& tile, int64_t r, const Span& span, int64_t padded) {
  float* weights = tile.weights + r * kSpanKeys;
  const int64_t vectors = span.count * kStripVectors;
  F scores[kSpan * kStripVectors], top = splat(kLowest);
  for (int64_t v = 0; v < vectors; ++v) {
    const auto& strip = span.strips[v / kStripVectors];
    const int64_t lane = v % kStripVectors * W;
    F x = load(weights + v * W);
    if (strip.key_scales != nullptr) x *= load(strip.key_scales + lane);
    if (job.softcap > 0) x = job.softcap * tanh(x / job.softcap);
    scores[v] = seen(tile, r, strip, lane, x);
    top = max(scores[v], top);
  }
  const float largest = reduce_max(top);  // lower than any score where none is seen
  F total = tile.total[r];
  if (largest > tile.largest[r] + kHeadroom) {
    const F shrink = exp(splat(tile.largest[r] - largest));
    tile.largest[r] = largest;
    total *= shrink;
    float* sums = tile.sums + r * padded;
    for (int64_t d = 0; d < padded; d += W) store(sums + d, load(sums + d) * shrink);
  }
  const F base = splat(tile.largest[r]);
  for (int64_t v = 0; v < vectors; ++v) {
    total += keep_weights(tile, r, v * W, power_of_two<fma>((scores[v] - base) * kLog2E), span);
  }
  tile.total[r] = total;
}

// sums += weights · values for kRows rows and kVectors vectors of the head from `d` on, over the keys that there are.
template <int kRows, int kVectors, typename Element>
static void blend(AttentionTile& tile, int64_t first_row, const Span<Element>& span, int64_t d, int64_t padded) {
  const float* weights = tile.weights + first_row * kSpanKeys;
  float* sums = tile.sums + first_row * padded;
  F total[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[r][v] = load(sums + r * padded + d + v * W);
  }
  for (int64_t i = 0; i < span.count; ++i) {
    for (int64_t j = 0; j < span.strips[i].there; ++j) {
      F value[kVectors];
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) value[v] = values_at(span.strips[i], j, d + v * W, padded);
#pragma GCC unroll 4
      for (int r = 0; r < kRows; ++r) {
        const F weight = splat(weights[r * kSpanKeys + i * kStrip + j]);
#pragma GCC unroll 4
        for (int v = 0; v < kVectors; ++v) total[r][v] = fma(weight, value[v], total[r][v]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + r * padded + d + v * W, total[r][v]);
  }
}

// `rows` rows, at most kRows, past one span.
template <int kRows, typename Span>
static void rows_past(const AttentionJob& job, AttentionTile& tile, int64_t r, int64_t rows, const Span& span) {
  if (rows == kRows) {
    const int64_t dim = job.blocks.head_dim, padded = (dim + kPanel - 1) / kPanel * kPanel;
    int64_t strip = 0;
    for (; strip + kScored <= span.count; strip += kScored) score<kRows, kScored>(tile, r, span, strip, dim);
    if (strip < span.count) score<kRows, 1>(tile, r, span, strip, dim);
    for (int i = 0; i < kRows; ++i) weigh(job, tile, r + i, span, padded);
    int64_t d = 0;
    for (; d + 4 * W <= padded; d += 4 * W) blend<kRows, 4>(tile, r, span, d, padded);
    for (; d < padded; d += W) blend<kRows, 1>(tile, r, span, d, padded);
  } else if constexpr (kRows > 1) {
    rows_past<kRows - 1>(job, tile, r, rows, span);
  }
}

template <typename Span>
static void tile_past(const AttentionJob& job, AttentionTile& tile, const Span& span) {
  for (int64_t r = 0; r < tile.rows; r += kAttentionRows) {
    rows_past<kAttentionRows>(job, tile, r, std::min<int64_t>(kAttentionRows, tile.rows - r), span);
  }
}

// The same span in float32: cheaper once than for every few rows again.
template <typename Element>
static Span<float> widened(AttentionTile& tile, const Span<Element>& span, int64_t dim, int64_t padded) {
  Span<float> wide{{}, span.count};
  for (int64_t s = 0; s < span.count; ++s) {
    const Strip<Element>& strip = span.strips[s];
    float *keys = tile.wide_keys + s * kStrip * dim, *values = tile.wide_values + s * kStrip * padded;
    for (int64_t d = 0; d < dim; ++d) {
      for (int v = 0; v < kStrip; v += W) store(keys + d * kStrip + v, keys_at(strip, d, v));
    }
    for (int64_t i = 0; i < strip.there; ++i) {
      for (int64_t d = 0; d < padded; d += W) store(values + i * padded + d, values_at(strip, i, d, padded));
    }
    wide.strips[s] = {keys, values, kStrip, strip.begin, strip.there, strip.key_scales, strip.value_scales};
  }
  return wide;
}

// The strip of a sequence's keys from `begin` on, the last of them before `end`.
template <typename Element>
static Strip<Element> strip_at(const AttentionJob& job, int64_t sequence, int64_t kv_head, int64_t begin, int64_t end) {
  const KeyValueBlocks& blocks = job.blocks;
  const int64_t padded = (blocks.head_dim + kPanel - 1) / kPanel * kPanel;
  const int64_t block = job.block_table[sequence * job.table_stride + begin / blocks.block_size];
  const int64_t head = (block * blocks.kv_heads + kv_head) * blocks.block_size, slot = begin % blocks.block_size;
  constexpr int64_t beside = kBeside<Element>;
  const auto* keys = static_cast<const Element*>(blocks.keys) + head * key_dims<Element>(blocks.head_dim) + slot * beside;
  const auto* values = static_cast<const Element*>(blocks.values) + (head + slot) * padded;
  const bool scaled = std::is_same_v<Element, int8_t>;
  const float *key_scales = scaled ? blocks.key_scales + head + slot : nullptr,
              *value_scales = scaled ? blocks.value_scales + head + slot : nullptr;
  const int64_t stride = blocks.block_size * beside, there = std::min(kStrip, end - begin);
  return {keys, values, stride, begin, there, key_scales, value_scales};
}

// Has the block that begins at a strip, or holds it, fetched from memory.
template <typename Element>
static void fetch(const KeyValueBlocks& blocks, const Strip<Element>& strip) {
  const int64_t padded = (blocks.head_dim + kPanel - 1) / kPanel * kPanel, slot = strip.begin % blocks.block_size;
  const auto lines = [](const Element* from, int64_t count) {
    constexpr int64_t kLine = 64 / sizeof(Element);
    for (int64_t i = 0; i < count; i += kLine) __builtin_prefetch(from + i, 0, 2);
  };
  lines(strip.keys - slot * kBeside<Element>, blocks.block_size * key_dims<Element>(blocks.head_dim));
  lines(strip.values - slot * padded, blocks.block_size * padded);
}

// Few rows pass over keys faster than they come from memory: the block behind the one of a strip, or else the first of
// `next`, what this thread comes to after the tile, is asked for before.
template <typename Element>
static void fetch_behind(const AttentionJob& job, const AttentionTile& tile, int64_t begin, int64_t end,
                         const AttentionItem* next) {
  const int64_t size = job.blocks.block_size, behind = (begin / size + 1) * size;
  if (behind < end) {
    fetch(job.blocks, strip_at<Element>(job, tile.sequence, tile.kv_head, behind, end));
  } else if (next != nullptr) {
    const int64_t key = first_key_of(job, next->sequence, next->tile * kTile);
    fetch(job.blocks, strip_at<Element>(job, next->sequence, next->kv_head, key, end));
  }
}

#if GROUNDUP_LEVEL >= 4
#include "attention_matrix.h"
#endif

// A tile past a span. A row's result does not depend on whether its numbers are widened for all rows.
template <typename Element>
static void pass(const AttentionJob& job, AttentionTile& tile, const Span<Element>& span, int64_t dim, int64_t padded) {
#if GROUNDUP_LEVEL >= 4
  if constexpr (std::is_same_v<Element, uint16_t>) {
    if (suits_matrix(job.blocks)) return matrix_past(job, tile, Pairs{span, padded}, padded);
  }
#endif
#if GROUNDUP_LEVEL >= 3
  if constexpr (std::is_same_v<Element, uint16_t>) return tile_past(job, tile, Pairs{span, padded});
#endif
  if (std::is_same_v<Element, float> || tile.rows <= kAttentionRows) tile_past(job, tile, span);
  else tile_past(job, tile, widened(tile, span, dim, padded));
}

template <typename Element>
static void attend_tile(const AttentionJob& job, AttentionTile& tile, const AttentionItem* next) {
  const KeyValueBlocks& blocks = job.blocks;
  const int64_t padded = (blocks.head_dim + kPanel - 1) / kPanel * kPanel;
  const int64_t first = tile.first_key[0] / kStrip * kStrip, end = tile.end_key[tile.rows - 1];
  for (int64_t begin = first; begin < end;) {
    Span<Element> span{{}, 0};
    do {
      span.strips[span.count++] = strip_at<Element>(job, tile.sequence, tile.kv_head, begin, end);
      const bool is_new = begin == first || begin % blocks.block_size == 0;
      if (is_new && tile.rows <= kAttentionRows) fetch_behind<Element>(job, tile, begin, end, next);
      begin += kStrip;
    } while (begin < end && begin % kSpanKeys != 0);
    pass(job, tile, span, blocks.head_dim, padded);
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float inverse = 1.0f / reduce_add(tile.total[r]);
    for (int64_t d = 0; d < blocks.head_dim; ++d) tile.out[r][d] = tile.sums[r * padded + d] * inverse;
  }
}

static void attend(const AttentionJob& job, int64_t begin, int64_t end) {
  AttentionTile tile;
#if GROUNDUP_LEVEL >= 4
  Tiles tiles;
#endif
  AttentionItem item = item_at(job, begin);
  for (int64_t i = begin; i < end; ++i) {
    begin_tile(job, item, tile);
#if GROUNDUP_LEVEL >= 4
    if (suits_matrix(job.blocks)) tiles.use(attention_shapes(tile.rows));
#endif
    const bool is_last = i + 1 == end;
    if (!is_last) item = item_after(job, item);
    const AttentionItem* next = is_last ? nullptr : &item;
    if (job.blocks.bits == 8) attend_tile<int8_t>(job, tile, next);
    else if (job.blocks.bits == 16) attend_tile<uint16_t>(job, tile, next);
    else attend_tile<float>(job, tile, next);
  }
}
