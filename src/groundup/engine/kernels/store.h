// Keeping keys and values in blocks. Included once for every level.
//
// A key is written across: its numbers go to cache lines of their own, beside those of the tokens around it. These lines
// are asked for a head ahead, so that they come from memory together.

INLINE void store(int8_t* to, F x) {
  const S bytes = narrow(round_to_int(x));
  std::memcpy(to, &bytes, sizeof bytes);
}

// The `dim` numbers of a head and zeros up to `padded`, and their scale if they are int8.
template <typename Element>
static void narrowed(const float* x, int64_t dim, int64_t padded, Element* to, float* scale) {
  float factor = 1.0f;
  bool is_finite = true;
  if constexpr (std::is_same_v<Element, int8_t>) {
    const Scale found = scale_of(x, dim);
    *scale = found.scale, factor = found.inverse, is_finite = found.is_finite;
  }
  for (int64_t d = 0; d < padded; d += W) store(to + d, is_finite ? load(x + d, dim - d) * factor : F{});
}

// Has the lines come that the keys and the values of a head are written to.
template <typename Element>
static void fetch_to_write(const Element* keys, const Element* values, int64_t size, int64_t dims, int64_t padded) {
  const int64_t each = std::max<int64_t>(kBeside<Element>, 64 / sizeof(Element) / size);
  for (int64_t d = 0; d < dims; d += each) __builtin_prefetch(keys + d * size, 1, 3);
  const int64_t line = 64 / sizeof(Element);
  for (int64_t d = 0; d < padded * kBeside<Element>; d += line) __builtin_prefetch(values + d, 1, 3);
}

// Tokens from m on that stand behind each other in a block: their keys are written line by line.
static int64_t run_of_slots(const StoreJob& job, int64_t m, int64_t end) {
  int64_t rows = 1;
  while (m + rows < end && rows < kStrip && job.slots[m + rows] == job.slots[m] + rows &&
         job.slots[m + rows] % job.blocks.block_size != 0) {
    ++rows;
  }
  return rows;
}

// What is summed over together is moved together.
template <typename Element>
using Beside = std::conditional_t<kBeside<Element> == 2, uint32_t, Element>;

// Numbers of tokens that stand behind each other in a block, narrowed: a row for each token.
constexpr int64_t kNarrowRow = kMaxHeadDim + kPanel;
template <typename Element>
using Narrowed = Beside<Element>[kStrip][kNarrowRow / kBeside<Element>];

// Keys of a head, `count` things to move of each. to: the first of the first token.
template <typename Thing, int64_t kRow>
static void put_keys(const Thing (&narrow)[kStrip][kRow], int64_t rows, int64_t count, int64_t size, Thing* to) {
  const auto put = [&](auto tokens) __attribute__((always_inline)) {
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t t = 0; t < tokens; ++t) to[i * size + t] = narrow[t][i];
    }
  };
  // How many there are is mostly one of two numbers, with which the compiler does much better.
  if (rows == 1) put(std::integral_constant<int64_t, 1>{});
  else if (rows == kStrip) put(std::integral_constant<int64_t, kStrip>{});
  else put(rows);
}

// Values of a head, in pairs of slots. to: of the block's first slot; `place` is that of the first token.
static void put_values(const Narrowed<uint16_t>& narrow, int64_t rows, int64_t place, int64_t padded, uint16_t* to) {
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t slot = place + t;
    uint16_t* pair = to + slot / 2 * padded * 2;
    if (slot % 2 == 0 && t + 1 < rows) {
      const auto halves = [&](int64_t row, int64_t d) { return widen(load_as<H>(narrow[row] + d / 2)); };
      for (int64_t d = 0; d < padded; d += W) {
        const U both = halves(t, d) | halves(t + 1, d) << 16;
        std::memcpy(pair + 2 * d, &both, sizeof both);
      }
      ++t;
    } else {
      uint16_t numbers[kNarrowRow];
      std::memcpy(numbers, narrow[t], padded * sizeof(uint16_t));
      for (int64_t d = 0; d < padded; ++d) pair[2 * d + slot % 2] = numbers[d];
    }
  }
}

template <typename Element>
static void store_rows(const StoreJob& job, int64_t begin, int64_t end) {
  const KeyValueBlocks& blocks = job.blocks;
  const int64_t dim = blocks.head_dim, dims = key_dims<Element>(dim), size = blocks.block_size;
  const int64_t padded = (dim + kPanel - 1) / kPanel * kPanel;
  constexpr bool is_scaled = std::is_same_v<Element, int8_t>, is_paired = kBeside<Element> > 1;
  Narrowed<Element> narrow;
  float unscaled;  // what has no scale needs a place to point to
  for (int64_t m = begin, rows; m < end; m += rows) {
    rows = run_of_slots(job, m, end);
    const int64_t first = job.slots[m] / size * blocks.kv_heads * size, place = job.slots[m] % size;
    Element* keys = static_cast<Element*>(blocks.keys) + first * dims + place * kBeside<Element>;
    Element* values = static_cast<Element*>(blocks.values) + first * padded;
    const int64_t own = place / kBeside<Element> * kBeside<Element> * padded;  // where the first token's value begins
    fetch_to_write(keys, values + own, size, dims, padded);
    for (int64_t h = 0; h < blocks.kv_heads; ++h, keys += size * dims, values += size * padded) {
      if (h + 1 < blocks.kv_heads) fetch_to_write(keys + size * dims, values + size * padded + own, size, dims, padded);
      const int64_t slot = first + h * size + place;
      const auto narrow_to = [&](const float* from, int64_t stride, float* scales, void* to, int64_t to_stride) {
        for (int64_t t = 0; t < rows; ++t) {
          float* scale = is_scaled ? scales + slot + t : &unscaled;
          Element* row = static_cast<Element*>(to) + t * to_stride;
          narrowed(from + (m + t) * stride + h * dim, dim, padded, row, scale);
        }
      };
      narrow_to(job.keys, job.key_stride, blocks.key_scales, narrow, kNarrowRow);
      put_keys(narrow, rows, dims / kBeside<Element>, size, reinterpret_cast<Beside<Element>*>(keys));
      if constexpr (is_paired) {
        narrow_to(job.values, job.value_stride, blocks.value_scales, narrow, kNarrowRow);
        put_values(narrow, rows, place, padded, values);
      } else {
        narrow_to(job.values, job.value_stride, blocks.value_scales, values + own, padded);
      }
    }
  }
}

static void store(const StoreJob& job, int64_t begin, int64_t end) {
  if (job.blocks.bits == 8) store_rows<int8_t>(job, begin, end);
  else if (job.blocks.bits == 16) store_rows<uint16_t>(job, begin, end);
  else store_rows<float>(job, begin, end);
}
