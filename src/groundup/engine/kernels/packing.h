// Where a number of a packed matrix lies, the same for every level: see PackedMatrix.
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

// Where column k of channel n lies; with 4 bits, k's bit of value 4 chooses the half of the byte.
inline int64_t byte_of(const PackedMatrix& matrix, int64_t n, int64_t k) {
  const int64_t step = matrix.bits == 4 ? 8 : 4, steps = matrix.columns / step;
  return ((n / kPanel * steps + k / step) * kPanel + n % kPanel) * 4 + k % 4;
}

inline int64_t scale_of(const PackedMatrix& matrix, int64_t n, int64_t g) {
  return (n / kPanel * (matrix.columns / matrix.group) + g) * kPanel + n % kPanel;
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
