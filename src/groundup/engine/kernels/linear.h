// Products of quantised activations with packed weights. Included once for every level.
//
// The integers of a group are summed exactly; every group is then scaled and added in order. A token's result therefore
// depends neither on the tile it is computed in, nor on its neighbours, nor on the thread.

// One token after another: scale = largest / 127, value = round(x · 127 / largest). A row that is smaller than any number
// that matters counts as zero, one that is not finite has a scale that is not a number.
static void quantise(const QuantiseJob& job, int64_t begin, int64_t end) {
  const Activations& out = job.out;
  for (int64_t m = begin; m < end; ++m) {
    const float* x = job.input + m * job.input_stride;
    F largest = {}, broken = {};
    for (int64_t i = 0; i < job.width; i += W) {
      const F part = load(x + i, job.width - i);
      largest = max(largest, abs(part));
      broken += part * 0.0f;
    }
    const float top = reduce_max(largest);
    const bool finite = reduce_add(broken) == 0.0f;
    const float inverse = finite && top > kSmallest ? 127.0f / top : 0.0f;
    out.scales[m] = !finite ? NAN : top > kSmallest ? top / 127.0f : 0.0f;
    int8_t* values = out.values + m * out.stride;
    for (int64_t i = 0; i < out.stride; i += W) {
      const F part = finite ? load(x + i, job.width - i) : F{};
      const S narrow = __builtin_convertvector(round_to_int(part * inverse), S);
      std::memcpy(values + i, &narrow, sizeof narrow);
    }
    int32_t* sums = out.running_sums + m * (out.stride / kSumColumns + 1);
    sums[0] = 0;
    for (int64_t i = 0; i < out.stride / kSumColumns; ++i) {
      int32_t sum = 0;
      for (int64_t j = 0; j < kSumColumns; ++j) sum += values[i * kSumColumns + j];
      sums[i + 1] = sums[i] + sum;
    }
  }
}

template <bool kNibbles>
struct Format {
  static constexpr int64_t kStep = kNibbles ? 8 : 4;  // columns of 16 channels in 64 bytes
  static constexpr int32_t kZero = kNibbles ? 8 : kByteZero;
  using Scale = std::conditional_t<kNibbles, uint16_t, float>;
};

INLINE F load_scale(const uint16_t* from) {
  H x;
  std::memcpy(&x, from, sizeof x);
  return from_half(x);
}
INLINE F load_scale(const float* from) { return load(from); }

INLINE B load_bytes(const uint8_t* from) {
  B x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

INLINE I splat_word(const int8_t* from) {
  int32_t word;
  std::memcpy(&word, from, sizeof word);
  return splat(word);
}

// kRows tokens against kPanels panels of 16 channels, in registers.
template <bool kNibbles, int kRows, int kPanels>
static void tile(const LinearJob& job, int64_t row, int64_t panel) {
  using Weights = Format<kNibbles>;
  constexpr int kVectors = kPanels * kPanel / W;
  const PackedMatrix& weight = job.weight;
  const int64_t panel_bytes = weight.columns / Weights::kStep * 64, groups = weight.columns / weight.group;
  const int64_t sum_stride = job.input.stride / kSumColumns + 1;
  const uint8_t* bytes = weight.values + panel * panel_bytes;
  const auto* scales = static_cast<const typename Weights::Scale*>(weight.scales) + panel * groups * kPanel;
  const int8_t* values = job.input.values + row * job.input.stride;
  const int32_t* running = job.input.running_sums + row * sum_stride;
  F totals[kRows][kVectors] = {};
  for (int64_t g = 0; g < groups; ++g) {
    const int64_t begin = g * weight.group, end = begin + weight.group;
    I sums[kRows][kVectors];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t* edges = running + r * sum_stride;
      const int32_t sum = edges[end / kSumColumns] - edges[begin / kSumColumns];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = splat(-Weights::kZero * sum);
    }
    for (int64_t k = begin; k < end; k += Weights::kStep) {
      B both[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* from = bytes + v * W / kPanel * panel_bytes + k * (64 / Weights::kStep) + v * W % kPanel * 4;
        if (kRows <= 2 && v * W % kPanel == 0) __builtin_prefetch(from + 4096);
        both[v] = load_bytes(from);
      }
      // One half of the nibbles after the other: fewer registers than both at once.
#pragma GCC unroll 2
      for (int half = 0; half < Weights::kStep / 4; ++half) {
        B weights[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) weights[v] = !kNibbles ? both[v] : half == 0 ? both[v] & 15 : both[v] >> 4;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const I word = splat_word(values + r * job.input.stride + k + 4 * half);
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = kNibbles ? dot_nibbles(sums[r][v], weights[v], word) : dot_bytes(sums[r][v], weights[v], word);
          }
        }
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const F scale = load_scale(scales + (v * W / kPanel * groups + g) * kPanel + v * W % kPanel);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) totals[r][v] = fma(to_float(sums[r][v]), scale, totals[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    float* out = job.out + (row + r) * job.out_stride;
    for (int v = 0; v < kVectors; ++v) {
      const int64_t n = panel * kPanel + v * W, left = job.weight.rows - n;
      const F bias = job.bias == nullptr ? F{} : load(job.bias + n, left);
      store(out + n, fma(totals[r][v], splat(job.input.scales[row + r]), bias), left);
    }
  }
}

// The tile with as many rows as are wanted, at most kRows.
template <bool kNibbles, int kRows>
static void tile_of(int64_t rows, const LinearJob& job, int64_t row, int64_t panel) {
  if (rows == kRows) tile<kNibbles, kRows, kTilePanels>(job, row, panel);
  else if constexpr (kRows > 1) tile_of<kNibbles, kRows - 1>(rows, job, row, panel);
}

// Tokens that pass by one set of panels before the next: their activations stay in the second cache.
constexpr int64_t kBlockRows = 240;

static int64_t linear_items(const LinearJob& job) {
  const int64_t padded = (job.weight.rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
  const int64_t blocks = (job.input.rows + kBlockRows - 1) / kBlockRows;
  return padded / kPanel / (job.input.rows == 1 ? kSinglePanels : kTilePanels) * blocks;
}

template <bool kNibbles>
static void linear(const LinearJob& job, int64_t begin, int64_t end) {
  const int64_t rows = job.input.rows;
  if (rows == 1) {
    for (int64_t i = begin; i < end; ++i) tile<kNibbles, 1, kSinglePanels>(job, 0, i * kSinglePanels);
    return;
  }
  const int64_t blocks = (rows + kBlockRows - 1) / kBlockRows, columns = linear_items(job) / blocks;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t stop = std::min(rows, (i / columns + 1) * kBlockRows);
    for (int64_t row = i / columns * kBlockRows; row < stop;) {
      // Seven rows are better done as four and three than as six and one.
      const int64_t tiles = (stop - row + kTileRows - 1) / kTileRows, size = (stop - row + tiles - 1) / tiles;
      tile_of<kNibbles, kTileRows>(size, job, row, i % columns * kTilePanels);
      row += size;
    }
  }
}
