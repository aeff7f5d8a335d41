// What adapters add to linear maps: up · (down · x), with few numbers in between. Included once for every level.
//
// Each of these few is summed on the lanes, then across them; each output is summed rank by rank, then added. No order
// depends on anything but the sizes of the adapter, so a token's result depends neither on its neighbours nor on the
// thread.

// A single token waits for memory: what lies so many bytes behind is fetched meanwhile.
constexpr int64_t kFetchedAhead = 8192;

template <int kRows>
INLINE void fetch_behind(const void* from) {
  if (kRows == 1) __builtin_prefetch(static_cast<const char*>(from) + kFetchedAhead, 0, 2);
}

INLINE int64_t token_of(const LowRankJob& job, int64_t i) { return job.tokens == nullptr ? i : job.tokens[i]; }

// kRows tokens from `first` on against kRankMultiple rows of `down`, float or uint16_t (bfloat16), from `rank` on.
template <typename Number, int kRows>
struct DownTile {
  static constexpr int kRanks = kRankMultiple;
  using Sums = F[kRows][kRanks];

  const LowRankJob& job;
  const int64_t first, rank;

  void run() const {
    Sums sums;
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kRanks; ++i) sums[i / kRanks][i % kRanks] = F{};
    const float* x[kRows];
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) x[r] = job.input + token_of(job, first + r) * job.width;
    const int64_t padded = (job.width + kPanel - 1) / kPanel * kPanel;
    const Number* from = static_cast<const Number*>(job.change.down) + rank * padded;
    int64_t k = 0;
    for (; k + kPanel <= job.width; k += kPanel, from += kPanel * kRanks) {
#pragma GCC unroll 4
      for (int v = 0; v < kPanel; v += W) add(sums, x, from + v, k + v, W);
    }
    for (int v = 0; k + v < job.width; v += W) add(sums, x, from + v, k + v, job.width - k - v);
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kRanks; ++i) {
      job.between[(first + i / kRanks) * job.change.rank + rank + i % kRanks] = reduce_add(sums[i / kRanks][i % kRanks]);
    }
  }

 private:
  INLINE_MEMBER void add(Sums& sums, const float* const (&x)[kRows], const Number* from, int64_t k, int64_t left) const {
    F weights[kRanks];
#pragma GCC unroll 8
    for (int c = 0; c < kRanks; ++c) {
      fetch_behind<kRows>(from + c * kPanel);
      weights[c] = load(from + c * kPanel);
    }
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const F part = load(x[r] + k, left);
#pragma GCC unroll 8
      for (int c = 0; c < kRanks; ++c) sums[r][c] = fma(part, weights[c], sums[r][c]);
    }
  }
};

// kRows tokens from `first` on against kPanels panels of `up` from `panel` on.
template <typename Number, int kRows, int kPanels>
struct UpTile {
  static constexpr int kVectors = kPanels * kPanel / W;

  const LowRankJob& job;
  const int64_t first, panel;

  void run() const {
    const int64_t ranks = job.change.rank;
    F sums[kRows][kVectors];
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kVectors; ++i) sums[i / kVectors][i % kVectors] = F{};
    for (int64_t rank = 0; rank < ranks; ++rank) {
      F weights[kVectors];
#pragma GCC unroll 8
      for (int v = 0; v < kVectors; ++v) {
        const int64_t at = ((panel + v * W / kPanel) * ranks + rank) * kPanel + v * W % kPanel;
        const Number* from = static_cast<const Number*>(job.change.up) + at;
        fetch_behind<kRows>(from);
        weights[v] = load(from);
      }
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const F part = splat(job.between[(first + r) * ranks + rank]);
#pragma GCC unroll 8
        for (int v = 0; v < kVectors; ++v) sums[r][v] = fma(part, weights[v], sums[r][v]);
      }
    }
#pragma GCC unroll 32
    for (int i = 0; i < kRows * kVectors; ++i) {
      const int64_t n = panel * kPanel + i % kVectors * W, left = job.outputs - n;
      float* out = job.out + token_of(job, first + i / kVectors) * job.outputs + n;
      store(out, load(out, left) + sums[i / kVectors][i % kVectors], left);
    }
  }
};

// Tokens of one tile after the other, about as many in each.
struct Tokens {
  int64_t first, count;
};
static int64_t token_tiles(const LowRankJob& job) { return (job.count + kTileRows - 1) / kTileRows; }
static Tokens tokens_of(const LowRankJob& job, int64_t tile) {
  const int64_t tiles = token_tiles(job), first = job.count * tile / tiles;
  return {first, job.count * (tile + 1) / tiles - first};
}

template <typename Number, int kRows>
static void down_tile(const LowRankJob& job, Tokens tokens, int64_t rank) {
  if (tokens.count == kRows) DownTile<Number, kRows>{job, tokens.first, rank}.run();
  else if constexpr (kRows > 1) down_tile<Number, kRows - 1>(job, tokens, rank);
}

template <typename Number, int kRows>
static void up_tile(const LowRankJob& job, Tokens tokens, int64_t panel) {
  if (tokens.count == kRows) UpTile<Number, kRows, kTilePanels>{job, tokens.first, panel}.run();
  else if constexpr (kRows > 1) up_tile<Number, kRows - 1>(job, tokens, panel);
}

static int64_t rank_tiles(const LowRankJob& job) { return job.change.rank / kRankMultiple; }

static int64_t down_items(const LowRankJob& job) { return token_tiles(job) * rank_tiles(job); }

// A few numbers of the rows that are looked up.
static void look_up(const LowRankJob& job, Tokens tokens, int64_t rank) {
  const float* rows = static_cast<const float*>(job.change.down);
  for (int64_t i = tokens.first; i < tokens.first + tokens.count; ++i) {
    const float* row = rows + job.ids[token_of(job, i)] * job.change.rank;
    std::memcpy(job.between + i * job.change.rank + rank, row + rank, kRankMultiple * sizeof(float));
  }
}

static void down(const LowRankJob& job, int64_t begin, int64_t end) {
  const auto tile = job.ids != nullptr ? look_up
                    : job.change.down_bits == 16 ? down_tile<uint16_t, kTileRows>
                                                 : down_tile<float, kTileRows>;
  for (int64_t i = begin; i < end; ++i) {
    tile(job, tokens_of(job, i / rank_tiles(job)), i % rank_tiles(job) * kRankMultiple);
  }
}

static int64_t panels_of_tile(const LowRankJob& job) { return job.count == 1 ? kSinglePanels : kTilePanels; }

static int64_t panel_tiles(const LowRankJob& job) {
  return (job.outputs + kRowMultiple - 1) / kRowMultiple * (kRowMultiple / kPanel) / panels_of_tile(job);
}

static int64_t up_items(const LowRankJob& job) { return token_tiles(job) * panel_tiles(job); }

template <typename Number>
static void up_as(const LowRankJob& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    const int64_t panel = i % panel_tiles(job) * panels_of_tile(job);
    if (job.count == 1) UpTile<Number, 1, kSinglePanels>{job, 0, panel}.run();
    else up_tile<Number, kTileRows>(job, tokens_of(job, i / panel_tiles(job)), panel);
  }
}

static void up(const LowRankJob& job, int64_t begin, int64_t end) {
  (job.change.up_bits == 16 ? up_as<uint16_t> : up_as<float>)(job, begin, end);
}
