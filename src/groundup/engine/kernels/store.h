// Keeping keys and values in blocks. Included once for every level.
//
// A key is written across: its numbers go to cache lines of their own, beside those of the tokens around it. These lines
// are asked for a head ahead, so that they come from memory together.

// As bfloat16, to the nearest, halves to even; as int8.
INLINE void store(uint16_t* to, F x) {
  const U bits = (U)x, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  const H halves = narrow(x == x ? rounded : (bits >> 16 | 0x40));
  std::memcpy(to, &halves, sizeof halves);
}
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

template <typename Element>
static void fetch_to_write(const Element* keys, int64_t size, int64_t dim) {
  const int64_t each = std::max<int64_t>(1, 64 / sizeof(Element) / size);
  for (int64_t d = 0; d < dim; d += each) __builtin_prefetch(keys + d * size, 1, 3);
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

template <typename Element>
static void store_rows(const StoreJob& job, int64_t begin, int64_t end) {
  const KeyValueBlocks& blocks = job.blocks;
  const int64_t dim = blocks.head_dim, size = blocks.block_size, padded = (dim + kPanel - 1) / kPanel * kPanel;
  Element narrow_keys[kStrip][kMaxHeadDim];
  float unscaled;  // what has no scale needs a place to point to
  for (int64_t m = begin, rows; m < end; m += rows) {
    rows = run_of_slots(job, m, end);
    const int64_t first = job.slots[m] / size * blocks.kv_heads * size, place = job.slots[m] % size;
    Element* keys = static_cast<Element*>(blocks.keys) + first * dim + place;
    Element* values = static_cast<Element*>(blocks.values) + (first + place) * padded;
    fetch_to_write(keys, size, dim);
    for (int64_t h = 0; h < blocks.kv_heads; ++h) {
      if (h + 1 < blocks.kv_heads) fetch_to_write(keys + (h + 1) * size * dim, size, dim);
      const int64_t slot = first + h * size + place;
      const bool scaled = std::is_same_v<Element, int8_t>;
      for (int64_t t = 0; t < rows; ++t) {
        const float *key = job.keys + (m + t) * job.key_stride + h * dim,
                    *value = job.values + (m + t) * job.value_stride + h * dim;
        narrowed(key, dim, padded, narrow_keys[t], scaled ? blocks.key_scales + slot + t : &unscaled);
        Element* to = values + (h * size + t) * padded;
        narrowed(value, dim, padded, to, scaled ? blocks.value_scales + slot + t : &unscaled);
      }
      for (int64_t d = 0; d < dim; ++d) {
        for (int64_t t = 0; t < rows; ++t) keys[(h * dim + d) * size + t] = narrow_keys[t][d];
      }
    }
  }
}

static void store(const StoreJob& job, int64_t begin, int64_t end) {
  if (job.blocks.bits == 8) store_rows<int8_t>(job, begin, end);
  else if (job.blocks.bits == 16) store_rows<uint16_t>(job, begin, end);
  else store_rows<float>(job, begin, end);
}
