// Attention to keys and values in bfloat16 by matrix registers: the scores of all rows of a tile against a strip of keys
// are a few products. Included once, for the level that has them.
//
// Pairs of bfloat16 lie as these registers read them. A head is a multiple of 32 dimensions here; others, and what is not
// bfloat16, are computed as without matrix registers.

constexpr int64_t kMatrixDims = 32;

static bool suits_matrix(const KeyValueBlocks& blocks) { return blocks.bits == 16 && blocks.head_dim % kMatrixDims == 0; }

// Registers 0 and 1 hold scores or sums of values, 4 queries (32 dimensions), 5 weights (16 keys), 6 keys, 7 values.
static TileShapes attention_shapes(int64_t rows) {
  TileShapes shapes;
  for (int i = 0; i < 2; ++i) shapes.shape(i, rows, 64);
  shapes.shape(4, rows, 2 * kMatrixDims);
  shapes.shape(5, rows, 2 * kStrip);
  shapes.shape(6, kMatrixDims / 2, 4 * kStrip);
  shapes.shape(7, kStrip / 2, 64);
  return shapes;
}

// Scores of all rows against the strips of a span.
static void score(AttentionTile& tile, const Pairs& span, int64_t dim) {
  settle();
  for (int64_t s = 0; s < span.count; ++s) {
    const Strip<uint16_t>& strip = span.strips[s];
    _tile_zero(0);
    for (int64_t d = 0; d < dim; d += kMatrixDims) {
      _tile_loadd(4, tile.paired_queries + d / 2, dim * sizeof(uint16_t));
      _tile_loadd(6, strip.keys + d / 2 * strip.key_stride, strip.key_stride * sizeof(uint16_t));
      _tile_dpbf16ps(0, 4, 6);
    }
    _tile_stored(0, tile.weights + s * kStrip, kSpanKeys * sizeof(float));
  }
  settle();
}

// The values of a strip, zeros where it has no more keys: what is there may be no number, and nothing times that is none.
static const uint16_t* whole_values(const Strip<uint16_t>& strip, int64_t padded, uint16_t* room) {
  if (strip.there == kStrip) return strip.values;
  const int64_t pairs = strip.there / 2 * 2 * padded;
  std::memcpy(room, strip.values, pairs * sizeof(uint16_t));
  std::memset(room + pairs, 0, (kStrip * padded - pairs) * sizeof(uint16_t));
  if (strip.there % 2) {
    for (int64_t i = 0; i < 2 * padded; i += 2) room[pairs + i] = strip.values[pairs + i];
  }
  return room;
}

// sums += weights · values for all rows.
static void blend(AttentionTile& tile, const Pairs& span, int64_t padded) {
  constexpr int64_t kWeightBytes = kSpanKeys * sizeof(uint16_t);
  const int64_t bytes = padded * sizeof(float);  // of a row of sums, and of two values side by side
  uint16_t room[kStrip * kMaxHeadDim];
  const uint16_t* values[kSpan];
  for (int64_t s = 0; s < span.count; ++s) values[s] = whole_values(span.strips[s], padded, room);
  settle();
  for (int64_t d = 0; d < padded; d += kMatrixDims) {
    _tile_loadd(0, tile.sums + d, bytes);
    _tile_loadd(1, tile.sums + d + kStrip, bytes);
    for (int64_t s = 0; s < span.count; ++s) {
      _tile_loadd(5, tile.paired_weights + s * kStrip / 2, kWeightBytes);
      _tile_loadd(7, values[s] + 2 * d, bytes);
      _tile_dpbf16ps(0, 5, 7);
      _tile_loadd(7, values[s] + 2 * (d + kStrip), bytes);
      _tile_dpbf16ps(1, 5, 7);
    }
    _tile_stored(0, tile.sums + d, bytes);
    _tile_stored(1, tile.sums + d + kStrip, bytes);
  }
  settle();
}

static void matrix_past(const AttentionJob& job, AttentionTile& tile, const Pairs& span, int64_t padded) {
  score(tile, span, job.blocks.head_dim);
  for (int64_t r = 0; r < tile.rows; ++r) weigh(job, tile, r, span, padded);
  blend(tile, span, padded);
}
