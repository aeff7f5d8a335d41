// The packed layout of a matrix, from its plain one and back. It is the same for every level: see PackedMatrix.
#pragma once

#include <cmath>
#include <cstring>

#include "jobs.h"

inline float half_to_float(uint16_t half) {
  const uint32_t sign = (half & 0x8000u) << 16, size = half & 0x7fffu;
  if (size < 0x0400) return std::ldexp(static_cast<float>(size), -24) * (sign ? -1.0f : 1.0f);  // exact, subnormal
  const uint32_t bits = sign | (size >= 0x7c00 ? 0x7f800000u | (size & 0x3ff) << 13 : (size << 13) + (112u << 23));
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

namespace packing {

inline int64_t padded_rows(int64_t rows) { return (rows + kRowMultiple - 1) / kRowMultiple * kRowMultiple; }

// Where column k of channel n lies; with 4 bits, k's bit of value 4 chooses the half of the byte.
inline int64_t byte_of(const PackedMatrix& matrix, int64_t n, int64_t k) {
  const int64_t step = matrix.bits == 4 ? 8 : 4, steps = matrix.columns / step;
  return ((n / kPanel * steps + k / step) * kPanel + n % kPanel) * 4 + k % 4;
}

inline int64_t scale_of(const PackedMatrix& matrix, int64_t n, int64_t g) {
  return (n / kPanel * (matrix.columns / matrix.group) + g) * kPanel + n % kPanel;
}

struct PackJob {
  PackedMatrix packed;
  uint8_t* packed_values;
  void* packed_scales;
  const uint8_t* values;  // [rows][columns / 2], column 2i in the low half of byte i; or [rows][columns] of int8
  const void* scales;     // [rows][columns / group]
};

inline uint8_t nibble(const uint8_t* row, int64_t k) { return row[k / 2] >> (k % 2 * 4) & 15; }

inline void pack_row(const PackJob& job, int64_t n) {
  const PackedMatrix& packed = job.packed;
  const bool padding = n >= packed.rows;  // weights of zero
  if (packed.bits == 4) {
    const uint8_t* row = job.values + n * (packed.columns / 2);
    for (int64_t k = 0; k < packed.columns; k += 8) {
      for (int64_t j = k; j < k + 4; ++j) {
        const uint8_t both = padding ? 0x88 : nibble(row, j) | nibble(row, j + 4) << 4;
        job.packed_values[byte_of(packed, n, j)] = both;
      }
    }
  } else {
    const uint8_t* row = job.values + n * packed.columns;
    for (int64_t k = 0; k < packed.columns; ++k) {
      job.packed_values[byte_of(packed, n, k)] = padding ? 0x80 : row[k] ^ 0x80;
    }
  }
  const int64_t groups = packed.columns / packed.group, size = packed.bits == 4 ? 2 : 4;
  for (int64_t g = 0; g < groups; ++g) {
    char* to = static_cast<char*>(job.packed_scales) + scale_of(packed, n, g) * size;
    if (padding) std::memset(to, 0, size);
    else std::memcpy(to, static_cast<const char*>(job.scales) + (n * groups + g) * size, size);
  }
}

inline void pack(const PackJob& job, int64_t begin, int64_t end) {
  for (int64_t n = begin; n < end; ++n) pack_row(job, n);
}

inline void gather(const GatherJob& job, int64_t begin, int64_t end) {
  const PackedMatrix& weight = job.weight;
  for (int64_t i = begin; i < end; ++i) {
    const int64_t n = job.ids[i];
    for (int64_t k = 0; k < job.width; ++k) {
      const uint8_t byte = weight.values[byte_of(weight, n, k)];
      const int64_t at = scale_of(weight, n, k / weight.group);
      const float value = weight.bits == 4 ? (byte >> (k & 4) & 15) - 8.0f : byte - 128.0f;
      const float scale = weight.bits == 4 ? half_to_float(static_cast<const uint16_t*>(weight.scales)[at])
                                           : static_cast<const float*>(weight.scales)[at];
      job.out[i * job.width + k] = value * scale;
    }
  }
}

}  // namespace packing
