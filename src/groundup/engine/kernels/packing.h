// Where a number of a matrix lies, the same for every level: see Matrix.
#pragma once

#include <algorithm>
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
inline int64_t byte_of(const Matrix& matrix, int64_t n, int64_t k) {
  const int64_t step = matrix.format == kW4 ? 8 : 4, steps = matrix.columns / step;
  return ((n / kPanel * steps + k / step) * kPanel + n % kPanel) * 4 + k % 4;
}

inline int64_t scale_of(const Matrix& matrix, int64_t n, int64_t g) {
  return (n / kPanel * (matrix.columns / matrix.group) + g) * kPanel + n % kPanel;
}

// Row n of columns begin … end - 1, which share a scale; `begin` is a multiple of 8.
inline void gather_group(const Matrix& weight, int64_t n, int64_t begin, int64_t end, float* out) {
  const int64_t at = scale_of(weight, n, begin / weight.group);
  if (weight.format == kW4) {
    const float scale = half_to_float(static_cast<const uint16_t*>(weight.scales)[at]);
    for (int64_t k = begin; k < end; k += 8) {
      const uint8_t* bytes = weight.values + byte_of(weight, n, k);
      for (int64_t i = 0; i < std::min<int64_t>(8, end - k); ++i) {
        out[k + i] = ((bytes[i % 4] >> (i & 4) & 15) - 8.0f) * scale;
      }
    }
  } else {
    const float scale = static_cast<const float*>(weight.scales)[at];
    for (int64_t k = begin; k < end; k += 4) {
      const uint8_t* bytes = weight.values + byte_of(weight, n, k);
      for (int64_t i = 0; i < std::min<int64_t>(4, end - k); ++i) out[k + i] = (bytes[i] - 128.0f) * scale;
    }
  }
}

inline float widened(uint16_t bfloat16) {
  const uint32_t bits = static_cast<uint32_t>(bfloat16) << 16;
  float out;
  std::memcpy(&out, &bits, sizeof out);
  return out;
}

// A row of a floating matrix.
inline void gather_row(const Matrix& weight, int64_t n, float* out) {
  if (weight.format == kFloat32) {
    std::memcpy(out, weight.values + n * weight.columns * sizeof(float), weight.columns * sizeof(float));
    return;
  }
  const auto* row = reinterpret_cast<const uint16_t*>(weight.values) + n * weight.columns;
  for (int64_t k = 0; k < weight.columns; ++k) {
    out[k] = weight.format == kFloat16 ? half_to_float(row[k]) : widened(row[k]);
  }
}

inline void gather(const GatherJob& job, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    float* out = job.out + i * job.width;
    if (job.ids[i] < 0) {
      std::fill_n(out, job.width, 0.0f);
      continue;
    }
    if (job.weight.format >= kFloat32) {
      gather_row(job.weight, job.ids[i], out);
      continue;
    }
    for (int64_t k = 0; k < job.width; k += job.weight.group) {
      gather_group(job.weight, job.ids[i], k, std::min(k + job.weight.group, job.width), out);
    }
  }
}

}  // namespace packing
