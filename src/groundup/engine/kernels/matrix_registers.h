// Registers of 16 rows by 64 bytes, and products of two of them: Intel's Advanced Matrix Extensions, AMX. Included once,
// for the level that has them.
//
// Compilers do not know that a register is loaded from, or stored to, memory that they write and read: `settle` says so.

INLINE void settle() { asm volatile("" ::: "memory"); }

// The shapes of the eight registers, as the processor reads them.
struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t bytes[16] = {};  // of a row
  uint8_t rows[16] = {};

  INLINE_MEMBER void shape(int tile, int64_t its_rows, int64_t its_bytes) {
    rows[tile] = static_cast<uint8_t>(its_rows), bytes[tile] = static_cast<uint16_t>(its_bytes);
  }
};
static_assert(sizeof(TileShapes) == 64, "what LDTILECFG reads");

// The registers while a kernel uses them: a thread that holds none is cheaper to interrupt.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Tiles&) = delete;
  ~Tiles() { if (is_set_) _tile_release(); }

  // Shapes them, which takes as long as ten products, unless they are as wanted.
  INLINE_MEMBER void use(const TileShapes& wanted) {
    if (is_set_ && std::memcmp(&shapes_, &wanted, sizeof wanted) == 0) return;
    shapes_ = wanted, is_set_ = true;
    // Not the compiler's own function: some of them take no more than the first eight bytes for read.
    asm volatile("ldtilecfg %0" : : "m"(shapes_));
  }

 private:
  TileShapes shapes_;
  bool is_set_ = false;
};
