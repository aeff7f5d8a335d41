// Products with matrices of bfloat16 in matrix registers: up to 32 channels, whose rows are read as they lie, by up to 32
// tokens, two columns of each side by side. Included once, for the level that has them. Also a single token is multiplied
// so, as there is no other way to the same bits.

// Tokens whose pairs lie together, and the columns of one product.
constexpr int64_t kPairTokens = 16, kPairColumns = 32;
// Columns whose weights are copied together, into the order in which registers read them.
constexpr int64_t kCopiedColumns = 512, kCopies = kCopiedColumns / kPairColumns;

// Transposes 16 rows of 16 numbers.
INLINE void transpose(const F (&rows)[16], F (&columns)[16]) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; i += 2) {
    a[i] = _mm512_unpacklo_ps((__m512)rows[i], (__m512)rows[i + 1]);
    a[i + 1] = _mm512_unpackhi_ps((__m512)rows[i], (__m512)rows[i + 1]);
  }
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) {  // b[4q + c]: in each quarter j of the register column 4j + c of rows 4q … 4q + 3
    const __m512d first = (__m512d)a[i / 4 * 4 + i % 4 / 2], second = (__m512d)a[i / 4 * 4 + 2 + i % 4 / 2];
    b[i] = (__m512)(i % 2 == 0 ? _mm512_unpacklo_pd(first, second) : _mm512_unpackhi_pd(first, second));
  }
#pragma GCC unroll 4
  for (int c = 0; c < 4; ++c) {
    const __m512 low = _mm512_shuffle_f32x4(b[c], b[4 + c], 0x44), high = _mm512_shuffle_f32x4(b[c], b[4 + c], 0xee);
    const __m512 more_low = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0x44);
    const __m512 more_high = _mm512_shuffle_f32x4(b[8 + c], b[12 + c], 0xee);
    columns[c] = (F)_mm512_shuffle_f32x4(low, more_low, 0x88);
    columns[4 + c] = (F)_mm512_shuffle_f32x4(low, more_low, 0xdd);
    columns[8 + c] = (F)_mm512_shuffle_f32x4(high, more_high, 0x88);
    columns[12 + c] = (F)_mm512_shuffle_f32x4(high, more_high, 0xdd);
  }
}

// Activations are pairs [m/16][k/2][16], zeros behind their last column. An item is some columns of 16 tokens: whoever
// writes a cache line writes all of it.
constexpr int64_t kItemColumns = 256;

static int64_t items_of_set(const RoundJob& job) { return (job.out.stride + kItemColumns - 1) / kItemColumns; }

static int64_t round_items(const RoundJob& job) {
  return (job.out.rows + kPairTokens - 1) / kPairTokens * items_of_set(job);
}

static void round_to_pairs(const RoundJob& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t set = i / items_of_set(job), first = set * kPairTokens, from = i % items_of_set(job) * kItemColumns;
    float* pairs = static_cast<float*>(job.out.values) + set * kPairTokens * job.out.stride / 2;
    for (int64_t k = from; k < std::min(from + kItemColumns, job.out.stride); k += kPairColumns) {
      F rows[kPairTokens], columns[kPairColumns / 2];
      for (int64_t m = 0; m < kPairTokens; ++m) {
        uint16_t narrow[kPairColumns] = {};
        const float* x = job.input + (first + m) * job.input_stride;
        if (first + m < job.out.rows) {
          store(narrow, load(x + k, job.width - k)), store(narrow + W, load(x + k + W, job.width - k - W));
        }
        rows[m] = load_as<F>(narrow);
      }
      transpose(rows, columns);
      for (int64_t p = 0; p < kPairColumns / 2; ++p) store(pairs + (k / 2 + p) * kPairTokens, columns[p]);
    }
  }
}

// Where weights of 32 channels are read: tiles of 16 channels by 32 columns.
struct PairWeights {
  const uint16_t* first;
  int64_t panel;  // numbers from the first 16 channels to the others
  int64_t row;    // from a channel to the next
  int64_t tile;   // from columns to the next 32
  bool fetches;   // whether the channels behind these, which lie as these do, are fetched meanwhile
};

// Copies of weights, [channels/16][columns/32][16][32], zeros behind the last of both.
struct CopiedWeights {
  alignas(64) uint16_t values[2][kCopies][kPanel][kPairColumns];

  PairWeights weights() const {
    return {values[0][0][0], kCopies * kPanel * kPairColumns, kPairColumns, kPanel * kPairColumns, false};
  }
};

static void copy_weights(const Matrix& weight, int64_t channel, int64_t channels, int64_t begin, int64_t end,
                         CopiedWeights& to) {
  const auto* rows = reinterpret_cast<const uint16_t*>(weight.values);
  const int64_t ahead = 2 * kPanel * weight.columns;
  for (int64_t c = 0; c < 2 * kPanel; ++c) {
    const uint16_t* row = rows + (channel + c) * weight.columns;
    for (int64_t k = begin; k < end; k += kPairColumns) {
      uint16_t* out = to.values[c / kPanel][(k - begin) / kPairColumns][c % kPanel];
      const U pairs = c < channels ? load_part<U>(row + k, weight.columns - k) : U{};
      if (c < channels) __builtin_prefetch(row + k + ahead, 0, 2);
      std::memcpy(out, &pairs, sizeof pairs);
    }
  }
}

// Registers 0 to 3 hold sums, of the first 16 channels with each 16 tokens and of the others, 4 and 5 channels, 6 and 7
// tokens.
using PairSums = float[4][kPanel][kPairTokens];

INLINE void load_sums(const PairSums& from) {
  settle();
  _tile_loadd(0, from[0], 64);
  _tile_loadd(1, from[1], 64);
  _tile_loadd(2, from[2], 64);
  _tile_loadd(3, from[3], 64);
}

INLINE void store_sums(PairSums& to) {
  _tile_stored(0, to[0], 64);
  _tile_stored(1, to[1], 64);
  _tile_stored(2, to[2], 64);
  _tile_stored(3, to[3], 64);
  settle();
}

INLINE void clear_sums() {
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
}

// sums += channels · tokens over `count` times 32 columns. kBoth: of two sets of tokens, `stride` bytes apart.
template <bool kBoth>
INLINE void multiply_pairs(const PairWeights& weights, const char* tokens, int64_t stride, int64_t count) {
  settle();
  const uint16_t *first = weights.first, *second = weights.first + weights.panel;
  const int64_t row_bytes = 2 * weights.row, ahead = 2 * kPanel * weights.row;
  for (int64_t i = 0; i < count; ++i, first += weights.tile, second += weights.tile) {
    if (weights.fetches) {
#pragma GCC unroll 32
      for (int64_t c = 0; c < 2 * kPanel; ++c) __builtin_prefetch(first + c * weights.row + ahead, 0, 2);
    }
    _tile_loadd(6, tokens, 64);
    _tile_loadd(4, first, row_bytes);
    _tile_dpbf16ps(0, 4, 6);
    _tile_loadd(5, second, row_bytes);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kBoth) {
      _tile_loadd(7, tokens + stride, 64);
      _tile_dpbf16ps(1, 4, 7);
      _tile_dpbf16ps(3, 5, 7);
    }
    tokens += kPairTokens * 2 * kPairColumns;
  }
}

// Writes the results of tokens begin … end - 1 of the job among 16 from `token` on, in 16 channels from `channel` on.
static void put_pairs(const LinearJob& job, const float (&sums)[kPanel][kPairTokens], int64_t token, int64_t begin,
                      int64_t end, int64_t channel) {
  F rows[16], columns[16];
#pragma GCC unroll 16
  for (int i = 0; i < 16; ++i) rows[i] = load(sums[i]);
  transpose(rows, columns);
  const int64_t left = job.weight.rows - channel;
  const F bias = job.bias == nullptr ? F{} : load(job.bias + channel, left);
  for (int64_t m = std::max(begin, token); m < std::min(end, token + kPairTokens); ++m) {
    const int64_t at = m * job.out_stride + channel;
    F y = columns[m - token] + bias;
    if (job.residual != nullptr) y += load(job.residual + at, left);
    store(job.out + at, y, left);
  }
}

// Tokens begin … end - 1 against channels first … last - 1. Tokens of others in the same sets of 16 are multiplied with
// them, and not written. Where there are few, weights are read where they lie, but for the last ones of a matrix.
static void pair_block(const LinearJob& job, int64_t begin, int64_t end, int64_t first, int64_t last, Tiles& tiles) {
  constexpr int64_t kMostSets = kBlockRows / kPairTokens / 2 + 1;
  const int64_t columns = job.weight.columns, set_bytes = kPairTokens * 2 * job.input.stride;
  const int64_t origin = job.input.first;  // tokens of the job are counted from it
  const int64_t first_set = (origin + begin) / kPairTokens, sets = (origin + end - 1) / kPairTokens + 1 - first_set;
  const char* values = static_cast<const char*>(job.input.values) + first_set * set_bytes;
  TileShapes shapes;
  for (int i = 0; i < 8; ++i) shapes.shape(i, kPanel, 64);
  tiles.use(shapes);
  alignas(64) PairSums sums[kMostSets];
  CopiedWeights copies;
  for (int64_t channel = first; channel < last; channel += 2 * kPanel) {
    const bool reads = sets <= 2 && channel + 2 * kPanel <= last;
    const int64_t whole = reads ? columns / kPairColumns * kPairColumns : 0;
    for (int64_t k = 0, stop; k < columns; k = stop) {
      stop = k < whole ? whole : std::min(columns, k + kCopiedColumns);
      PairWeights weights;
      if (k < whole) {
        const auto* rows = reinterpret_cast<const uint16_t*>(job.weight.values) + channel * columns;
        weights = {rows, kPanel * columns, columns, kPairColumns, true};
      } else {
        copy_weights(job.weight, channel, std::min(last - channel, 2 * kPanel), k, stop, copies);
        weights = copies.weights();
      }
      for (int64_t s = 0; s < sets; s += 2) {
        const char* tokens = values + s * set_bytes + k * kPairTokens * 2;
        const int64_t count = (stop - k + kPairColumns - 1) / kPairColumns;
        if (k == 0) clear_sums();
        else if (sets > 2) load_sums(sums[s / 2]);
        if (s + 1 < sets) multiply_pairs<true>(weights, tokens, set_bytes, count);
        else multiply_pairs<false>(weights, tokens, set_bytes, count);
        if (sets > 2 || stop == columns) store_sums(sums[s / 2]);
        if (stop < columns) continue;
        for (int64_t i = 0; i < 4; ++i) {
          const int64_t token = (first_set + s + i % 2) * kPairTokens - origin, n = channel + i / 2 * kPanel;
          if (s + i % 2 < sets && n < last) put_pairs(job, sums[s / 2][i], token, begin, end, n);
        }
      }
    }
  }
}
