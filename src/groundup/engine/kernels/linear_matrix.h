// Products of many tokens in matrix registers, 32 tokens by 32 channels at a time. Included once, for the level that has
// them. Integers are summed exactly, groups scaled and added as in linear.h: results are the same to the bit.

// Tokens from which this is faster.
constexpr int64_t kMatrixTokens = 7;
constexpr int64_t kTileTokens = 16, kTileColumns = 64, kSetTokens = 2 * kTileTokens;
// Columns whose weights are unpacked together: they stay in the first cache while all tokens of a block pass by them, and
// where these are few, the next ones are unpacked while these are still multiplied.
constexpr int64_t kMatrixColumns = 256;

// Columns begin … end - 1 of two panels as signed bytes, behind them zeros up to a whole tile.
struct Unpacked {
  int64_t begin, end;
  alignas(64) int8_t values[kTilePanels][kMatrixColumns * kPanel];
};

template <bool kNibbles>
static void unpack(const Matrix& matrix, int64_t panel, Unpacked& weights) {
  constexpr int64_t kStep = Packing<kNibbles>::kStep;
  const int64_t ahead = kTilePanels * matrix.columns / kStep * 64;  // the next panels are fetched meanwhile
  const int64_t steps = (weights.end - weights.begin) / kStep;
  for (int64_t p = 0; p < kTilePanels; ++p) {
    const uint8_t* from = matrix.values + ((panel + p) * matrix.columns + weights.begin) / kStep * 64;
    int8_t* to = weights.values[p];
    for (int64_t i = 0; i < steps; ++i, from += 64, to += kStep * kPanel) {
      __builtin_prefetch(from + ahead, 0, 2);
      const B bytes = load_as<B>(from), low = kNibbles ? (bytes & 15) - 8 : bytes ^ 128;
      std::memcpy(to, &low, sizeof low);
      if constexpr (kNibbles) {
        const B high = (bytes >> 4) - 8;
        std::memcpy(to + sizeof low, &high, sizeof high);
      }
    }
    const int64_t rest = steps * kStep % kTileColumns;
    if (rest > 0) std::memset(to, 0, (kTileColumns - rest) * kPanel);
  }
}

// Up to 32 tokens from `row` on against two panels; more than 16 if kBoth. Registers 0 to 3 hold sums, of the first 16
// tokens and of the others with each panel, 4 and 5 tokens, 6 and 7 weights.
template <bool kNibbles, bool kBoth>
struct MatrixTile {
  static constexpr int64_t kSums = kSetTokens * kTileChannels, kRowBytes = 4 * kTileChannels;

  const LinearJob& job;
  const int64_t row, tokens, panel;
  const Unpacked& weights;
  const int64_t at_once;  // columns of one product

  // As of a Tile.
  void run(int32_t* partial) const {
    const bool is_last = weights.end == job.weight.columns;
    if (is_last) fetch_to_write();
    if constexpr (kNibbles) {
      const int64_t group = job.weight.group, end = weights.end / group;
      for (int64_t g = weights.begin / group; g < end;) {
        if (end - g >= 4) g = add_groups<4>(g, partial);
        else if (end - g >= 2) g = add_groups<2>(g, partial);
        else g = add_groups<1>(g, partial);
      }
    } else {
      if (weights.begin == 0) clear();
      else load(partial);
      multiply(weights.begin, weights.end);
      store(partial);
      if (is_last) add<1>({partial}, 0, partial);
    }
  }

  INLINE_MEMBER TileShapes shapes() const {
    TileShapes shapes;
    const int64_t first = std::min(tokens, kTileTokens), second = tokens - first;
    for (int p = 0; p < 2; ++p) {
      shapes.shape(p, first, 4 * kPanel);
      if (kBoth) shapes.shape(2 + p, second, 4 * kPanel);
      shapes.shape(6 + p, at_once / 4, 4 * kPanel);
    }
    shapes.shape(4, first, at_once);
    if (kBoth) shapes.shape(5, second, at_once);
    return shapes;
  }

 private:
  // Has what the results overwrite come from memory while they are computed.
  INLINE_MEMBER void fetch_to_write() const {
    for (int64_t r = 0; r < tokens; ++r) {
      float* out = job.out + (row + r) * job.out_stride + panel * kPanel;
      __builtin_prefetch(out, 1, 3), __builtin_prefetch(out + kPanel, 1, 3);
    }
  }

  INLINE_MEMBER void clear() const {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (!kBoth) return;
    _tile_zero(2);
    _tile_zero(3);
  }

  INLINE_MEMBER void load(const int32_t* from) const {
    const int32_t* second = from + kTileTokens * kTileChannels;
    settle();
    _tile_loadd(0, from, kRowBytes);
    _tile_loadd(1, from + kPanel, kRowBytes);
    if constexpr (!kBoth) return;
    _tile_loadd(2, second, kRowBytes);
    _tile_loadd(3, second + kPanel, kRowBytes);
  }

  INLINE_MEMBER void store(int32_t* to) const {
    int32_t* second = to + kTileTokens * kTileChannels;
    _tile_stored(0, to, kRowBytes);
    _tile_stored(1, to + kPanel, kRowBytes);
    if constexpr (kBoth) {
      _tile_stored(2, second, kRowBytes);
      _tile_stored(3, second + kPanel, kRowBytes);
    }
    settle();
  }

  // Several groups from g on, whose totals are then read and written once. Returns the group behind them.
  template <int kGroups>
  INLINE_MEMBER int64_t add_groups(int64_t g, int32_t* totals) const {
    alignas(64) int32_t sums[kGroups][kSums];
    const int32_t* groups[kGroups];
    for (int i = 0; i < kGroups; ++i) {
      clear();
      multiply((g + i) * job.weight.group, (g + i + 1) * job.weight.group);
      store(sums[i]);
      groups[i] = sums[i];
    }
    add<kGroups>(groups, g, totals);
    return g + kGroups;
  }

  INLINE_MEMBER void multiply(int64_t begin, int64_t end) const {
    const int64_t stride = job.input.stride;
    const int8_t* values = integers_of(job, row);
    for (int64_t k = begin; k < end; k += at_once) {
      const int64_t from = (k - weights.begin) * kPanel;
      _tile_loadd(4, values + k, stride);
      _tile_loadd(6, weights.values[0] + from, 64);
      _tile_dpbssd(0, 4, 6);
      _tile_loadd(7, weights.values[1] + from, 64);
      _tile_dpbssd(1, 4, 7);
      if constexpr (kBoth) {
        _tile_loadd(5, values + kTileTokens * stride + k, stride);
        _tile_dpbssd(2, 5, 6);
        _tile_dpbssd(3, 5, 7);
      }
    }
  }

  // totals += scale · sums of the groups from g on, in order; with the last group they go out.
  template <int kGroups>
  INLINE_MEMBER void add(const int32_t* const (&sums)[kGroups], int64_t g, int32_t* totals) const {
    const int64_t groups = job.weight.columns / job.weight.group;
    F scales[kGroups][kTilePanels];
    for (int64_t i = 0; i < kGroups * kTilePanels; ++i) {
      const int64_t at = ((panel + i % kTilePanels) * groups + g + i / kTilePanels) * kPanel;
      F& scale = scales[i / kTilePanels][i % kTilePanels];
      if constexpr (kNibbles) scale = from_half(load_as<H>(static_cast<const uint16_t*>(job.weight.scales) + at));
      else scale = load_as<F>(static_cast<const float*>(job.weight.scales) + at);
    }
    const auto each = [&](const auto& use) __attribute__((always_inline)) {
      for (int64_t t = 0; t < tokens; ++t) {
#pragma GCC unroll 2
        for (int64_t p = 0; p < kTilePanels; ++p) {
          const int64_t i = t * kTileChannels + p * kPanel;
          F total = g == 0 ? F{} : load_as<F>(totals + i);
#pragma GCC unroll 4
          for (int n = 0; n < kGroups; ++n) total = fma(to_float(load_as<I>(sums[n] + i)), scales[n][p], total);
          use(t, p, total);
        }
      }
    };
    if (g + kGroups == groups) {
      each([&](int64_t t, int64_t p, F total) __attribute__((always_inline)) {
        put(job, row + t, (panel + p) * kPanel, total);
      });
    } else {
      each([&](int64_t t, int64_t p, F total) __attribute__((always_inline)) {
        std::memcpy(totals + t * kTileChannels + p * kPanel, &total, sizeof total);
      });
    }
  }
};

// Tokens begin … end - 1 against one set of panels.
template <bool kNibbles>
static void matrix_block(const LinearJob& job, int64_t begin, int64_t end, int64_t panel, Tiles& tiles) {
  const int64_t at_once = kNibbles && job.weight.group % kTileColumns != 0 ? kSumColumns : kTileColumns;
  int32_t partial[kBlockRows * kTileChannels];
  Unpacked weights;
  for (int64_t k = 0; k < job.weight.columns; k = weights.end) {
    weights.begin = k, weights.end = std::min(job.weight.columns, k + kMatrixColumns);
    unpack<kNibbles>(job.weight, panel, weights);
    for (int64_t row = begin; row < end; row += kSetTokens) {
      const int64_t tokens = std::min(kSetTokens, end - row);
      const auto pass = [&](auto both) {
        const MatrixTile<kNibbles, both> tile{job, row, tokens, panel, weights, at_once};
        tiles.use(tile.shapes());
        tile.run(partial + (row - begin) * kTileChannels);
      };
      if (tokens > kTileTokens) pass(std::true_type{});
      else pass(std::false_type{});
    }
  }
}
