// Registers of 16 rows by 64 bytes, and products of two of them: Intel's Advanced Matrix Extensions, AMX. Included once,
// for the level that has them.
//
// Compilers do not know that a register is loaded from, or stored to, memory that they write and read: `settle` says so.

INLINE void settle() { asm volatile("" ::: "memory"); }

// The shapes of the eight registers, as the processor reads them. Setting them costs as much as a few products and makes
// all registers zero.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};

  INLINE_MEMBER void shape(int tile, int64_t its_rows, int64_t its_bytes) {
    rows[tile] = static_cast<uint8_t>(its_rows), bytes[tile] = static_cast<uint16_t>(its_bytes);
  }
  // Not the compiler's own function: some of them take no more than its first eight bytes for read.
  INLINE_MEMBER void set() const { asm volatile("ldtilecfg %0" : : "m"(*this)); }
};
static_assert(sizeof(TileShapes) == 64, "what LDTILECFG reads");

// Gives the registers back at the end of a kernel: a thread that holds none is cheaper to interrupt.
struct TilesInUse {
  TilesInUse() = default;
  TilesInUse(const TilesInUse&) = delete;
  ~TilesInUse() { _tile_release(); }
};
