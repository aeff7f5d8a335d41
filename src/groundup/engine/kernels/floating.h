// Products with floating matrices, whose rows are read where they lie. Included once for every level.
//
// Each lane of a register sums what it sees of a token and a channel, then the lanes are added up: in an order that depends
// on the width alone. A token's result therefore depends neither on the tile it is computed in, nor on its neighbours, nor
// on the thread. bfloat16 is multiplied by bfloat16; a product of two is exact in float32.

// How a format is read: kStep columns of a token and of a channel are a vector each.
template <Format kFormat>
struct Reading {
  using Value = float;
  using Weight = std::conditional_t<kFormat == kFloat32, float, uint16_t>;
  static constexpr int64_t kStep = W;
  static INLINE_MEMBER F value(const float* from, int64_t left) { return load(from, left); }
  static INLINE_MEMBER F weight(const Weight* from, int64_t left) {
    if constexpr (kFormat == kFloat32) return load(from, left);
    else if constexpr (kFormat == kFloat16) return from_half(load_part<H>(from, left));
    else return (F)(widen(load_part<H>(from, left)) << 16);
  }
  static INLINE_MEMBER F multiply_add(F value, F weight, F sums) { return fma(value, weight, sums); }
};

#if GROUNDUP_LEVEL >= 3
template <>
struct Reading<kBfloat16> {
  using Value = uint16_t;
  using Weight = uint16_t;
  static constexpr int64_t kStep = 2 * W;
  static INLINE_MEMBER U value(const uint16_t* from, int64_t left) { return load_part<U>(from, left); }
  static INLINE_MEMBER U weight(const uint16_t* from, int64_t left) { return load_part<U>(from, left); }
  static INLINE_MEMBER F multiply_add(U value, U weight, F sums) { return dot_pairs(sums, value, weight); }
};
#endif

// A register tile: kRows tokens from `row` on against four channels from `channel` on.
template <Format kFormat, int kRows>
struct RowTile {
  static constexpr int kChannels = 4;
  using Read = Reading<kFormat>;
  using Sums = F[kRows][kChannels];

  const LinearJob& job;
  const int64_t row, channel;
  const int64_t ahead;  // bytes from each weight that is read to the one that is fetched meanwhile

  // Columns begin … end - 1. Unless they are the last, what was summed so far waits in `partial` for the next.
  void run(int64_t begin, int64_t end, float* partial) const {
    const int64_t columns = job.weight.columns;
    const typename Read::Value* x[kRows];
    const typename Read::Weight* w[kChannels];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      x[r] = static_cast<const typename Read::Value*>(job.input.values) + (job.input.first + row + r) * job.input.stride;
    }
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {  // behind the last channel that one again, which is not kept
      const int64_t n = std::min(channel + c, job.weight.rows - 1);
      w[c] = reinterpret_cast<const typename Read::Weight*>(job.weight.values) + n * columns;
    }
    Sums sums;
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kChannels; ++i) {
      sums[i / kChannels][i % kChannels] = begin == 0 ? F{} : load(partial + i * W);
    }
    int64_t k = begin;
    for (; k + Read::kStep <= end; k += Read::kStep) add(sums, x, w, k, Read::kStep);
    if (k < end) add(sums, x, w, k, end - k);
    if (end == columns) return finish(sums);
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kChannels; ++i) store(partial + i * W, sums[i / kChannels][i % kChannels]);
  }

 private:
  template <typename Value, typename Weight>
  INLINE_MEMBER void add(Sums& sums, const Value* const (&x)[kRows], const Weight* const (&w)[kChannels], int64_t k,
                         int64_t left) const {
    decltype(Read::value(x[0], left)) values[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) values[r] = Read::value(x[r] + k, left);
#pragma GCC unroll 4
    for (int c = 0; c < kChannels; ++c) {
      if (ahead > 0) __builtin_prefetch(reinterpret_cast<const char*>(w[c] + k) + ahead, 0, 2);
      const auto weights = Read::weight(w[c] + k, left);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) sums[r][c] = Read::multiply_add(values[r], weights, sums[r][c]);
    }
  }

  INLINE_MEMBER void finish(const Sums& sums) const {
    const int64_t channels = std::min<int64_t>(kChannels, job.weight.rows - channel);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      float totals[kChannels];
      add_up(sums[r], totals);
      const int64_t at = (row + r) * job.out_stride + channel;
      for (int64_t c = 0; c < channels; ++c) {
        float y = totals[c];
        if (job.bias != nullptr) y += job.bias[channel + c];
        if (job.residual != nullptr) y += job.residual[at + c];
        job.out[at + c] = y;
      }
    }
  }
};

// Columns of a block: those of the tokens of a tile stay in the first cache while channels pass by.
constexpr int64_t kFloatColumns = 1024;

template <Format kFormat, int kRows>
static void row_tile(int64_t rows, const LinearJob& job, int64_t row, int64_t channel, int64_t ahead, int64_t begin,
                     int64_t end, float* partial) {
  if (rows == kRows) RowTile<kFormat, kRows>{job, row, channel, ahead}.run(begin, end, partial);
  else if constexpr (kRows > 1) row_tile<kFormat, kRows - 1>(rows, job, row, channel, ahead, begin, end, partial);
}

// Tokens begin … end - 1 against channels first … last - 1.
template <Format kFormat>
static void row_block(const LinearJob& job, int64_t begin, int64_t end, int64_t first, int64_t last) {
  constexpr int64_t kChannels = RowTile<kFormat, 1>::kChannels, kNumbers = kTileRows * kChannels * W;
  const int64_t columns = job.weight.columns, at_once = end - begin <= kTileRows ? columns : kFloatColumns;
  const int64_t next = kChannels * columns * static_cast<int64_t>(sizeof(typename Reading<kFormat>::Weight));
  float partial[kSinglePanels * kPanel / kChannels * kNumbers];
  for (int64_t row = begin; row < end;) {
    const int64_t tiles = (end - row + kTileRows - 1) / kTileRows, rows = (end - row + tiles - 1) / tiles;
    for (int64_t k = 0; k < columns; k += at_once) {
      const int64_t stop = std::min(columns, k + at_once);
      for (int64_t n = first; n < last; n += kChannels) {
        const int64_t ahead = row == begin ? next : 0;
        row_tile<kFormat, kTileRows>(rows, job, row, n, ahead, k, stop, partial + (n - first) / kChannels * kNumbers);
      }
    }
    row += rows;
  }
}

template <Format kFormat>
static void linear_rows(const LinearJob& job, int64_t begin, int64_t end) {
  const int64_t rows = job.input.rows, blocks = (rows + kBlockRows - 1) / kBlockRows;
  const int64_t sets = linear_items(job) / blocks, panels = rows == 1 ? kSinglePanels : kTilePanels;
#if GROUNDUP_LEVEL >= 4
  Tiles tiles;
#endif
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = i / sets * kBlockRows, stop = std::min(rows, row + kBlockRows), panel = i % sets * panels;
    const int64_t first = panel * kPanel, last = std::min(job.weight.rows, first + panels * kPanel);
    if (first >= last) continue;
#if GROUNDUP_LEVEL >= 4
    if constexpr (kFormat == kBfloat16) pair_block(job, row, stop, first, last, tiles);
    else
#endif
    row_block<kFormat>(job, row, stop, first, last);
    find_peaks(job, row, stop, panel, panels);
  }
}

// Activations as products with bfloat16 read them, see RoundJob: where these are multiplied in matrix registers, as
// floating_matrix.h says; else rows, of bfloat16 where it is multiplied in pairs, and of float32 that is rounded.
#if GROUNDUP_LEVEL < 4
static int64_t round_items(const RoundJob& job) { return job.out.rows; }

static void round_to_pairs(const RoundJob& job, int64_t begin, int64_t end) {
  using Value = Reading<kBfloat16>::Value;
  for (int64_t m = begin; m < end; ++m) {
    Value* values = static_cast<Value*>(job.out.values) + m * job.out.stride;
    for (int64_t k = 0; k < job.out.stride; k += W) {
      uint16_t narrow[W];
      store(narrow, load(job.input + m * job.input_stride + k, job.width - k));
      if constexpr (std::is_same_v<Value, float>) store(values + k, load(narrow));
      else std::memcpy(values + k, narrow, sizeof narrow);
    }
  }
}
#endif
