// Attention of queries to keys and values in blocks. Included once for every level.
//
// A tile of up to 16 rows (a row is one head of one token, all of one key-value head) passes over the keys in strips of
// 16, from the first key that any of them sees, and keeps for each row the largest score so far, the sum of weights and
// the weighted sum of values: the softmax of Milakov and Gimelshein 2018, in tiles as Dao et al. 2022. Strips lie where
// they lie in the text and what a row does not see adds exact zeros, so a row's result depends on no other row.

constexpr int64_t kTile = 16;
constexpr int kStripVectors = kStrip / W;
constexpr float kLowest = -1e38f;  // below every score, and finite: e to the difference of two of them is a number

struct AttentionTile {
  int64_t sequence, kv_head, rows;
  int64_t first_key[kTile], end_key[kTile];  // what each row sees
  float* out[kTile];
  float queries[kTile * kMaxHeadDim];  // times scale
  float sums[kTile * kMaxHeadDim];     // of values, padded rows
  float weights[kTile * kStrip];
  float largest[kTile];
  F total[kTile];                         // of weights, lane by lane
  float wide_keys[kMaxHeadDim * kStrip];  // of the strip, if they are widened for all rows
  float wide_values[kStrip * kMaxHeadDim];
};

// Tiles of a sequence for each key-value head. What threads share out are items [sequence][kv_head][tile].
static int64_t tiles_of(const AttentionJob& job, int64_t sequence) {
  const int64_t tokens = job.query_starts[sequence + 1] - job.query_starts[sequence];
  return (tokens * (job.heads / job.blocks.kv_heads) + kTile - 1) / kTile;
}

static int64_t attention_items(const AttentionJob& job) {
  int64_t items = 0;
  for (int64_t s = 0; s < job.sequences; ++s) items += tiles_of(job, s) * job.blocks.kv_heads;
  return items;
}

static void begin_tile(const AttentionJob& job, int64_t sequence, int64_t item, AttentionTile& tile) {
  const int64_t group = job.heads / job.blocks.kv_heads, dim = job.blocks.head_dim, tiles = tiles_of(job, sequence);
  const int64_t tokens = job.query_starts[sequence + 1] - job.query_starts[sequence];
  const int64_t padded = (dim + kPanel - 1) / kPanel * kPanel, first_row = item % tiles * kTile;
  tile.sequence = sequence, tile.kv_head = item / tiles, tile.rows = std::min(kTile, tokens * group - first_row);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const int64_t token = (first_row + r) / group, head = tile.kv_head * group + (first_row + r) % group;
    const int64_t row = job.query_starts[sequence] + token;
    tile.end_key[r] = job.key_counts[sequence] - tokens + token + 1;
    tile.first_key[r] = job.window > 0 ? std::max<int64_t>(0, tile.end_key[r] - job.window) : 0;
    tile.out[r] = job.out + row * job.out_stride + head * dim;
    const float* query = job.queries + row * job.query_stride + head * dim;
    for (int64_t d = 0; d < dim; ++d) tile.queries[r * dim + d] = query[d] * job.scale;
    std::fill_n(tile.sums + r * padded, padded, 0.0f);
    // A sink is a key that was seen first and has no value.
    tile.largest[r] = job.sinks == nullptr ? kLowest : job.sinks[head];
    tile.total[r] = F{};
    tile.total[r][0] = job.sinks == nullptr ? 0.0f : 1.0f;
  }
}

// One dimension of the products of kRows queries with a strip of keys.
template <int kRows, typename Element>
INLINE void score_step(const float* queries, const Element* keys, int64_t dim, F (&scores)[kRows][kStripVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kStripVectors; ++v) {
    const F key = load(keys + v * W);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) scores[r][v] = fma(splat(queries[r * dim]), key, scores[r][v]);
  }
}

// Scores of kRows rows against a strip of keys; odd and even dimensions are summed apart, for two chains are faster.
template <int kRows, typename Element>
static void score(const float* queries, const Element* keys, int64_t dim, int64_t key_stride, float* scores) {
  F even[kRows][kStripVectors] = {}, odd[kRows][kStripVectors] = {};
  for (int64_t d = 0; d + 1 < dim; d += 2) {
    score_step<kRows>(queries + d, keys + d * key_stride, dim, even);
    score_step<kRows>(queries + d + 1, keys + (d + 1) * key_stride, dim, odd);
  }
  if (dim % 2) score_step<kRows>(queries + dim - 1, keys + (dim - 1) * key_stride, dim, even);
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kStripVectors; ++v) store(scores + r * kStrip + v * W, even[r][v] + odd[r][v]);
  }
}

// Keys and values of a strip, and their scales if they are int8: the first `there` of its keys exist.
template <typename Element>
struct Strip {
  const Element *keys, *values;
  int64_t key_stride, begin, there;
  const float *key_scales, *value_scales;  // or null
};

// From scores to weights e^(score - largest), in place; what was summed under a smaller largest score shrinks. Weights
// of int8 values are stored times the value's scale.
template <typename Element>
static void weigh(const AttentionJob& job, AttentionTile& tile, int64_t r, const Strip<Element>& strip,
                  int64_t padded) {
  // Bounds as lanes of the strip, cut so that they fit into 32 bits however far away they are.
  const int32_t first = std::max<int64_t>(tile.first_key[r] - strip.begin, 0);
  const int32_t end = std::clamp<int64_t>(tile.end_key[r] - strip.begin, 0, kStrip);
  float* weights = tile.weights + r * kStrip;
  F scores[kStripVectors], top = splat(tile.largest[r]);
  for (int v = 0; v < kStripVectors; ++v) {
    F x = load(weights + v * W);
    if (strip.key_scales != nullptr) x *= load(strip.key_scales + v * W);
    if (job.softcap > 0) x = job.softcap * tanh(x / job.softcap);
    const I index = lanes() + v * W;
    scores[v] = (index >= first) & (index < end) ? x : splat(-INFINITY);
    top = max(scores[v], top);
  }
  const float largest = reduce_max(top);
  if (largest > tile.largest[r]) {
    const F shrink = exp(splat(tile.largest[r] - largest));
    tile.largest[r] = largest;
    tile.total[r] *= shrink;
    float* sums = tile.sums + r * padded;
    for (int64_t d = 0; d < padded; d += W) store(sums + d, load(sums + d) * shrink);
  }
  for (int v = 0; v < kStripVectors; ++v) {
    const F weight = exp(scores[v] - largest);
    tile.total[r] += weight;
    store(weights + v * W, strip.value_scales == nullptr ? weight : weight * load(strip.value_scales + v * W));
  }
}

// sums += weights · values for kRows rows and kVectors vectors of the head, over the strip's keys that there are.
template <int kRows, int kVectors, typename Element>
static void blend(const float* weights, const Element* values, int64_t keys, int64_t padded, float* sums) {
  F total[kRows][kVectors];
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) total[r][v] = load(sums + r * padded + v * W);
  }
  for (int64_t j = 0; j < keys; ++j) {
    F value[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) value[v] = load(values + j * padded + v * W);
#pragma GCC unroll 4
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) total[r][v] = fma(splat(weights[r * kStrip + j]), value[v], total[r][v]);
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sums + r * padded + v * W, total[r][v]);
  }
}

// `rows` rows, at most kRows, past one strip.
template <int kRows, typename Element>
static void rows_past(const AttentionJob& job, AttentionTile& tile, int64_t r, int64_t rows,
                      const Strip<Element>& strip) {
  if (rows == kRows) {
    const int64_t dim = job.blocks.head_dim, padded = (dim + kPanel - 1) / kPanel * kPanel;
    score<kRows>(tile.queries + r * dim, strip.keys, dim, strip.key_stride, tile.weights + r * kStrip);
    for (int i = 0; i < kRows; ++i) weigh(job, tile, r + i, strip, padded);
    float* sums = tile.sums + r * padded;
    const float* weights = tile.weights + r * kStrip;
    int64_t d = 0;
    for (; d + 4 * W <= padded; d += 4 * W) blend<kRows, 4>(weights, strip.values + d, strip.there, padded, sums + d);
    for (; d < padded; d += W) blend<kRows, 1>(weights, strip.values + d, strip.there, padded, sums + d);
  } else if constexpr (kRows > 1) {
    rows_past<kRows - 1>(job, tile, r, rows, strip);
  }
}

template <typename Element>
static void tile_past(const AttentionJob& job, AttentionTile& tile, const Strip<Element>& strip) {
  for (int64_t r = 0; r < tile.rows; r += kAttentionRows) {
    rows_past<kAttentionRows>(job, tile, r, std::min<int64_t>(kAttentionRows, tile.rows - r), strip);
  }
}

// The same strip in float32: cheaper once than for every few rows again.
template <typename Element>
static Strip<float> widened(AttentionTile& tile, const Strip<Element>& strip, int64_t dim, int64_t padded) {
  for (int64_t d = 0; d < dim; ++d) {
    const Element* keys = strip.keys + d * strip.key_stride;
    for (int v = 0; v < kStrip; v += W) store(tile.wide_keys + d * kStrip + v, load(keys + v));
  }
  for (int64_t i = 0; i < strip.there * padded; i += W) store(tile.wide_values + i, load(strip.values + i));
  return {tile.wide_keys, tile.wide_values, kStrip, strip.begin, strip.there, strip.key_scales, strip.value_scales};
}

template <typename Element>
static void attend_tile(const AttentionJob& job, AttentionTile& tile) {
  const KeyValueBlocks& blocks = job.blocks;
  const int64_t padded = (blocks.head_dim + kPanel - 1) / kPanel * kPanel;
  const int64_t first = tile.first_key[0] / kStrip * kStrip, end = tile.end_key[tile.rows - 1];
  for (int64_t begin = first; begin < end; begin += kStrip) {
    const int64_t block = job.block_table[tile.sequence * job.table_stride + begin / blocks.block_size];
    const int64_t head = (block * blocks.kv_heads + tile.kv_head) * blocks.block_size, slot = begin % blocks.block_size;
    const auto* keys = static_cast<const Element*>(blocks.keys) + head * blocks.head_dim + slot;
    const auto* values = static_cast<const Element*>(blocks.values) + (head + slot) * padded;
    const bool scaled = std::is_same_v<Element, int8_t>;
    const float *key_scales = scaled ? blocks.key_scales + head + slot : nullptr,
                *value_scales = scaled ? blocks.value_scales + head + slot : nullptr;
    const Strip<Element> strip{keys,       values,    blocks.block_size, begin, std::min(kStrip, end - begin),
                               key_scales, value_scales};
    constexpr bool is_wide = std::is_same_v<Element, float>;
    if (is_wide || tile.rows <= kAttentionRows) tile_past(job, tile, strip);
    else tile_past(job, tile, widened(tile, strip, blocks.head_dim, padded));
  }
  for (int64_t r = 0; r < tile.rows; ++r) {
    const float inverse = 1.0f / reduce_add(tile.total[r]);
    for (int64_t d = 0; d < blocks.head_dim; ++d) tile.out[r][d] = tile.sums[r * padded + d] * inverse;
  }
}

static void attend(const AttentionJob& job, int64_t begin, int64_t end) {
  AttentionTile tile;
  int64_t sequence = 0, before = 0;  // items of earlier sequences
  for (int64_t i = begin; i < end; ++i) {
    while (i - before >= tiles_of(job, sequence) * job.blocks.kv_heads) {
      before += tiles_of(job, sequence++) * job.blocks.kv_heads;
    }
    begin_tile(job, sequence, i - before, tile);
    if (job.blocks.bits == 8) attend_tile<int8_t>(job, tile);
    else if (job.blocks.bits == 16) attend_tile<uint16_t>(job, tile);
    else attend_tile<float>(job, tile);
  }
}
