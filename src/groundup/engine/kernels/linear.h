// Products of quantized activations with packed weights. Included once for every level.
//
// The integers of a group are summed exactly; every group is then scaled and added in order. A token's result therefore
// depends neither on the tile it is computed in, nor on its neighbours, nor on the thread.

// The running sums of a row: see Activations. Fours are added as if they were multiplied by ones.
static void sum_up(const int8_t* values, int64_t stride, int32_t* sums) {
  constexpr int64_t kFours = kSumColumns / 4, kAtOnce = 1024;
  int32_t fours[kAtOnce / 4];
  *sums = 0;
  for (int64_t begin = 0; begin < stride; begin += kAtOnce) {
    const int64_t columns = std::min(kAtOnce, stride - begin);
    for (int64_t i = 0; i < columns; i += 4 * W) {
      const I sum = dot_nibbles(I{}, B{} + 1, load_as<I>(values + begin + i));
      std::memcpy(fours + i / 4, &sum, sizeof sum);
    }
    for (int64_t group = 0; group < columns / kSumColumns; ++group, ++sums) {
      int32_t sum = 0;
      for (int64_t j = 0; j < kFours; ++j) sum += fours[group * kFours + j];
      sums[1] = sums[0] + sum;
    }
  }
}

// One token after another: scale = largest / 127, value = round(x · 127 / largest). A row smaller than any number that
// matters counts as zero, one that is not finite has a scale that is not a number.
static void quantize(const QuantizeJob& job, int64_t begin, int64_t end) {
  const int64_t width = job.width, stride = job.out.stride;
  for (int64_t m = begin; m < end; ++m) {
    const float* x = job.input + m * job.input_stride;
    const Scale found = scale_of(x, width);
    job.out.scales[m] = found.scale;
    int8_t* values = static_cast<int8_t*>(job.out.values) + m * stride;
    const auto keep = [&](int64_t i, F part) __attribute__((always_inline)) {
      const S whole = narrow(round_to_int(part * found.inverse));
      std::memcpy(values + i, &whole, sizeof whole);
    };
    if (found.is_finite) {
      each_vector(width, [&](int64_t i, auto left) __attribute__((always_inline)) { keep(i, load(x + i, left)); });
    }
    const int64_t written = found.is_finite ? (width + W - 1) / W * W : 0;
    std::memset(values + written, 0, stride - written);
    sum_up(values, stride, job.out.running_sums + m * (stride / kSumColumns + 1));
  }
}

template <bool kNibbles>
struct Packing {
  static constexpr int64_t kStep = kNibbles ? 8 : 4;  // columns of 16 channels in 64 bytes
  static constexpr int32_t kZero = kNibbles ? 8 : kByteZero;
};

// The int8 of a token.
INLINE const int8_t* integers_of(const LinearJob& job, int64_t token) {
  return static_cast<const int8_t*>(job.input.values) + (job.input.first + token) * job.input.stride;
}

// The results of a token in W channels from n on.
INLINE void put(const LinearJob& job, int64_t token, int64_t n, F total) {
  const int64_t left = job.weight.rows - n, at = token * job.out_stride + n;
  F y = job.bias == nullptr ? F{} : load(job.bias + n, left);
  y = fma(total, splat(job.input.scales[job.input.first + token]), y);
  if (job.residual != nullptr) y += load(job.residual + at, left);
  store(job.out + at, y, left);
}

// A register tile: kRows tokens from `row` on against kPanels panels of 16 channels from `panel` on.
template <bool kNibbles, int kRows, int kPanels>
struct Tile {
  static constexpr int kVectors = kPanels * kPanel / W;
  static constexpr int64_t kStep = Packing<kNibbles>::kStep;
  using Sums = I[kRows][kVectors];
  using Totals = F[kRows][kVectors];

  const LinearJob& job;
  const int64_t row, panel;
  const int64_t ahead;  // bytes from each weight that is read to the one that is fetched meanwhile

  // Columns begin … end - 1. Unless they are the last, what was summed so far waits in `partial` for the next.
  void run(int64_t begin, int64_t end, int32_t* partial) const {
    const bool is_first = begin == 0, is_last = end == job.weight.columns;
    if (is_last) fetch_to_write();
    Totals totals;
    if constexpr (kNibbles) {
      if (is_first) clear(totals);
      else copy(totals, partial);
      const int64_t group = job.weight.group;
      for (int64_t g = begin / group; g < end / group; ++g) add_group(totals, g);
      if (!is_last) copy(partial, totals);
    } else {
      Sums sums;
      if (is_first) correct(sums, 0, job.weight.columns);
      else copy(sums, partial);
      accumulate(sums, begin, end);
      if (!is_last) return copy(partial, sums);
      clear(totals);
      scale(totals, sums, static_cast<const float*>(job.weight.scales) + panel * kPanel, kPanel);
    }
    if (is_last) finish(totals);
  }

 private:
  // Every loop over the tile is unrolled, or its arrays would lie in memory instead of registers.
  INLINE_MEMBER void clear(Totals& totals) const {
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kVectors; ++i) totals[i / kVectors][i % kVectors] = F{};
  }
  template <typename Vector>
  INLINE_MEMBER void copy(Vector (&to)[kRows][kVectors], const int32_t* from) const {
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kVectors; ++i) to[i / kVectors][i % kVectors] = load_as<Vector>(from + i * W);
  }
  template <typename Vector>
  INLINE_MEMBER void copy(int32_t* to, const Vector (&from)[kRows][kVectors]) const {
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kVectors; ++i) std::memcpy(to + i * W, &from[i / kVectors][i % kVectors], 4 * W);
  }

  // Has what the results overwrite come from memory while they are computed.
  INLINE_MEMBER void fetch_to_write() const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int p = 0; p < kPanels; ++p) {
        __builtin_prefetch(job.out + (row + r) * job.out_stride + (panel + p) * kPanel, 1, 3);
      }
    }
  }

  INLINE_MEMBER void add_group(Totals& totals, int64_t g) const {
    const int64_t begin = g * job.weight.group, end = begin + job.weight.group;
    const int64_t panel_scales = job.weight.columns / job.weight.group * kPanel;
    Sums sums;
    correct(sums, begin, end);
    accumulate(sums, begin, end);
    const auto* scales = static_cast<const uint16_t*>(job.weight.scales) + panel * panel_scales + g * kPanel;
    scale(totals, sums, scales, panel_scales);
  }

  // Sums begin at what the unsigned weights are off by over columns begin … end - 1.
  INLINE_MEMBER void correct(Sums& sums, int64_t begin, int64_t end) const {
    const int64_t stride = job.input.stride / kSumColumns + 1;
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const int32_t* running = job.input.running_sums + (job.input.first + row + r) * stride;
      const int32_t sum = running[end / kSumColumns] - running[begin / kSumColumns];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) sums[r][v] = splat(-Packing<kNibbles>::kZero * sum);
    }
  }

  // sums += weight · value over columns begin … end - 1.
  INLINE_MEMBER void accumulate(Sums& sums, int64_t begin, int64_t end) const {
    const int64_t panel_bytes = job.weight.columns / kStep * 64;
    const uint8_t* bytes = job.weight.values + panel * panel_bytes;
    const int8_t* values = integers_of(job, row);
    for (int64_t k = begin; k < end; k += kStep) {
      B both[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const uint8_t* from = bytes + v * W / kPanel * panel_bytes + k * (64 / kStep) + v * W % kPanel * 4;
        if (v * W % kPanel == 0) __builtin_prefetch(from + ahead, 0, 2);
        both[v] = load_as<B>(from);
      }
      // One half of the nibbles after the other takes fewer registers than both at once.
#pragma GCC unroll 2
      for (int half = 0; half < kStep / 4; ++half) {
        B weights[kVectors];
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) weights[v] = !kNibbles ? both[v] : half == 0 ? both[v] & 15 : both[v] >> 4;
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
          const I word = splat(load_as<int32_t>(values + r * job.input.stride + k + 4 * half));
#pragma GCC unroll 8
          for (int v = 0; v < kVectors; ++v) {
            sums[r][v] = kNibbles ? dot_nibbles(sums[r][v], weights[v], word) : dot_bytes(sums[r][v], weights[v], word);
          }
        }
      }
    }
  }

  // totals += scale · sums. scales: of the first panel; those of the next are panel_scales behind.
  template <typename Scale>
  INLINE_MEMBER void scale(Totals& totals, const Sums& sums, const Scale* scales, int64_t panel_scales) const {
#pragma GCC unroll 8
    for (int v = 0; v < kVectors; ++v) {
      const Scale* from = scales + v * W / kPanel * panel_scales + v * W % kPanel;
      F factor;
      if constexpr (kNibbles) factor = from_half(load_as<H>(from));
      else factor = load(from);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) totals[r][v] = fma(to_float(sums[r][v]), factor, totals[r][v]);
    }
  }

  INLINE_MEMBER void finish(const Totals& totals) const {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) put(job, row + r, panel * kPanel + v * W, totals[r][v]);
    }
  }
};

// Tokens and bytes of weights that pass by each other before the next: they stay in the second and the first cache.
constexpr int64_t kBlockRows = GROUNDUP_LEVEL >= 4 ? 256 : 240, kBlockBytes = 16384;
constexpr int64_t kTileChannels = kTilePanels * kPanel;

#if GROUNDUP_LEVEL >= 4
#include "linear_matrix.h"
#endif

static int64_t linear_items(const LinearJob& job) {
  const int64_t padded = (job.weight.rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple;
  const int64_t blocks = (job.input.rows + kBlockRows - 1) / kBlockRows;
  return padded / kPanel / (job.input.rows == 1 ? kSinglePanels : kTilePanels) * blocks;
}

// Columns begin … end - 1 of `rows` tokens, at most kRows, from `row` on.
template <bool kNibbles, int kRows>
static void tile_of(int64_t rows, const LinearJob& job, int64_t row, int64_t panel, int64_t ahead, int64_t begin,
                    int64_t end, int32_t* partial) {
  if (rows == kRows) Tile<kNibbles, kRows, kTilePanels>{job, row, panel, ahead}.run(begin, end, partial);
  else if constexpr (kRows > 1) tile_of<kNibbles, kRows - 1>(rows, job, row, panel, ahead, begin, end, partial);
}

// Tokens begin … end - 1 against one set of panels.
template <bool kNibbles>
static void block(const LinearJob& job, int64_t begin, int64_t end, int64_t panel) {
  constexpr int64_t kBlockColumns = kBlockBytes / kTileChannels * (kNibbles ? 2 : 1);
  int32_t partial[kBlockRows * kTileChannels];
  for (int64_t k = 0; k < job.weight.columns; k += kBlockColumns) {
    const int64_t stop = std::min(job.weight.columns, k + kBlockColumns);
    // While the first tokens pass by this block, the next is fetched: of these panels, or the first of the next ones.
    const int64_t columns = (stop < job.weight.columns ? stop : job.weight.columns * kTilePanels) - k;
    const int64_t ahead = columns / Packing<kNibbles>::kStep * 64;
    for (int64_t row = begin; row < end;) {
      // Seven rows are better done as four and three than as six and one.
      const int64_t tiles = (end - row + kTileRows - 1) / kTileRows, rows = (end - row + tiles - 1) / tiles;
      int32_t* partial_of = partial + (row - begin) * kTileChannels;
      tile_of<kNibbles, kTileRows>(rows, job, row, panel, row == begin ? ahead : 0, k, stop, partial_of);
      row += rows;
    }
  }
}

// Of what was just written: see Peak.
static void find_peaks(const LinearJob& job, int64_t begin, int64_t end, int64_t panel, int64_t panels) {
  if (job.peaks == nullptr) return;
  const int64_t last = std::min((panel + panels) * kPanel, job.weight.rows);
  for (int64_t m = begin; m < end; ++m) {
    for (int64_t n = panel * kPanel; n < last; n += kPeakLogits) {
      job.peaks[m * job.peak_stride + n / kPeakLogits] = peak_of(job.out + m * job.out_stride + n, last - n);
    }
  }
}

template <bool kNibbles>
static void linear(const LinearJob& job, int64_t begin, int64_t end) {
  const int64_t rows = job.input.rows, blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t panels = linear_items(job) / blocks;
  int32_t none[kSinglePanels * kPanel];
#if GROUNDUP_LEVEL >= 4
  Tiles tiles;
#endif
  for (int64_t i = begin; i < end; ++i) {
    if (rows == 1) {
      const int64_t ahead = job.weight.columns * kSinglePanels / Packing<kNibbles>::kStep * 64;
      Tile<kNibbles, 1, kSinglePanels>{job, 0, i * kSinglePanels, ahead}.run(0, job.weight.columns, none);
      find_peaks(job, 0, 1, i * kSinglePanels, kSinglePanels);
    } else {
      const int64_t row = i / panels * kBlockRows, stop = std::min(rows, row + kBlockRows), panel = i % panels * kTilePanels;
#if GROUNDUP_LEVEL >= 4
      if (stop - row >= kMatrixTokens) matrix_block<kNibbles>(job, row, stop, panel, tiles);
      else
#endif
      block<kNibbles>(job, row, stop, panel);
      find_peaks(job, row, stop, panel, kTilePanels);
    }
  }
}
