// The kernels of the engine on CPUs, as a C library: what a model's step is made of, on plain pointers.
//
// Everything is compiled once for every instruction set (level.h) and chosen when the library is loaded; nothing here
// needs a flag for the machine it is built on. Floating-point contraction is off: a·b + c is fused where `fma` says so
// and nowhere else, so that a number does not depend on what the compiler made of the loop around it.
//
// jobs.h: what a call is told; pool.h: threads; packing.h: the layout of weights; lanes.h, arithmetic.h: one register
// and what is made of it; linear.h, pointwise.h, attention.h, choose.h: the kernels; program.h: many of them in one call.
// Callers check sizes: nothing is checked here.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "jobs.h"
#include "packing.h"
#include "pool.h"

namespace {

// Below this a row of activations counts as zero; 127 divided by it is still finite.
constexpr float kSmallest = 1e-30f;
// Numbers below which a thread's help costs more than it brings.
constexpr int64_t kWorthwhile = 16384;

// The kernels of one level. Each works on the items begin … end - 1 of its job.
struct Kernels {
  void (*quantize)(const QuantizeJob&, int64_t, int64_t);
  int64_t (*linear_items)(const LinearJob&);
  void (*linear_nibbles)(const LinearJob&, int64_t, int64_t);
  void (*linear_bytes)(const LinearJob&, int64_t, int64_t);
  void (*norm)(const NormJob&, int64_t, int64_t);
  void (*rope)(const RopeJob&, int64_t, int64_t);
  void (*activate)(const ActivateJob&, int64_t, int64_t);
  void (*add)(const AddJob&, int64_t, int64_t);
  void (*mix)(const MixJob&, int64_t, int64_t);
  void (*gate)(const GateJob&, int64_t, int64_t);
  void (*combine)(const CombineJob&, int64_t, int64_t);
  void (*choose)(const ChooseJob&, int64_t, int64_t);
  int64_t (*attention_items)(const AttentionJob&);
  void (*attend)(const AttentionJob&, int64_t, int64_t);
};

#if defined(__clang__)
#define ALLOW_AVX2 _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c\"))), apply_to = function)")
#define ALLOW_AVX512                                                                                              \
  _Pragma("clang attribute push(__attribute__((target(\"avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni\"" \
          "))), apply_to = function)")
#define ALLOW_NO_MORE _Pragma("clang attribute pop")
#else
#define ALLOW_AVX2 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma,f16c\")")
#define ALLOW_AVX512      \
  _Pragma("GCC push_options") \
  _Pragma("GCC target(\"avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,prefer-vector-width=512\")")
#define ALLOW_NO_MORE _Pragma("GCC pop_options")
#endif

#define GROUNDUP_LEVEL 0
namespace portable {
#include "level.h"
}
#undef GROUNDUP_LEVEL

#if defined(__x86_64__)
ALLOW_AVX2
#define GROUNDUP_LEVEL 1
namespace avx2 {
#include "level.h"
}
#undef GROUNDUP_LEVEL
ALLOW_NO_MORE

ALLOW_AVX512
#define GROUNDUP_LEVEL 2
namespace avx512 {
#include "level.h"
}
#undef GROUNDUP_LEVEL
ALLOW_NO_MORE
#endif

// Levels from 0: portable, avx2, avx512. Null for those that this machine cannot run.
const Kernels* level(int number) {
  if (number == 0) return &portable::kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define HAS __builtin_cpu_supports
  const bool has_avx2 = HAS("avx2") && HAS("fma") && HAS("f16c");
  const bool has_avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512vl") && HAS("avx512dq") && HAS("avx512vnni");
#undef HAS
  if (number == 1 && has_avx2) return &avx2::kernels;
  if (number == 2 && has_avx2 && has_avx512) return &avx512::kernels;
#endif
  return nullptr;
}

int best_level() { return level(2) != nullptr ? 2 : level(1) != nullptr ? 1 : 0; }

std::atomic<int> chosen_level{best_level()};

const Kernels& chosen() { return *level(chosen_level.load(std::memory_order_relaxed)); }

// A kernel with its job, as the pool calls it.
template <typename Job>
struct Bound {
  void (*kernel)(const Job&, int64_t, int64_t);
  const Job& job;
};

template <typename Job>
void call(const void* bound, int64_t begin, int64_t end) {
  const auto& call = *static_cast<const Bound<Job>*>(bound);
  call.kernel(call.job, begin, end);
}

template <typename Job>
void run(void (*kernel)(const Job&, int64_t, int64_t), const Job& job, int64_t items, int64_t grain) {
  const Bound<Job> bound{kernel, job};
  pool::run(call<Job>, &bound, items, grain);
}

// Rows of this many numbers that are worth a chunk.
int64_t rows_worthwhile(int64_t width) { return std::max<int64_t>(1, kWorthwhile / std::max<int64_t>(1, width)); }

// What a number is kept as, and what a head's are multiplied by before.
template <typename Element>
Element narrowed(float x);
template <>
float narrowed<float>(float x) { return x; }
template <>
uint16_t narrowed<uint16_t>(float x) {  // to the nearest bfloat16, halves to even
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  if (x != x) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
template <>
int8_t narrowed<int8_t>(float x) { return static_cast<int8_t>(std::nearbyint(x)); }

// The scale of a head's numbers as int8, and what they are multiplied by, as for activations: see quantize.
float scale_of_head(const float* x, int64_t dim, float& inverse) {
  float largest = 0, broken = 0;
  for (int64_t d = 0; d < dim; ++d) largest = std::max(largest, std::fabs(x[d])), broken += x[d] * 0.0f;
  const bool finite = broken == 0.0f;
  inverse = finite && largest > kSmallest ? 127.0f / largest : 0.0f;
  return !finite ? NAN : largest > kSmallest ? largest / 127.0f : 0.0f;
}

// The numbers of one head of `rows` tokens, `stride` apart in the cache and side by side for tokens that are.
template <typename Element>
void store_head(const float* x, int64_t x_stride, int64_t rows, int64_t dim, float* scales, Element* to, int64_t stride) {
  float inverse[kStrip];
  for (int64_t t = 0; t < rows; ++t) {
    inverse[t] = 1.0f;
    if constexpr (std::is_same_v<Element, int8_t>) scales[t] = scale_of_head(x + t * x_stride, dim, inverse[t]);
  }
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t t = 0; t < rows; ++t) {
      to[d * stride + t] = narrowed<Element>(inverse[t] == 0.0f ? 0.0f : x[t * x_stride + d] * inverse[t]);
    }
  }
}

// Tokens from m on that stand behind each other in a block: their keys are written line by line.
int64_t run_of_slots(const StoreJob& job, int64_t m, int64_t end) {
  int64_t rows = 1;
  while (m + rows < end && rows < kStrip && job.slots[m + rows] == job.slots[m] + rows &&
         job.slots[m + rows] % job.blocks.block_size != 0) {
    ++rows;
  }
  return rows;
}

template <typename Element>
void store_rows(const StoreJob& job, int64_t begin, int64_t end) {
  const KeyValueBlocks& blocks = job.blocks;
  const int64_t dim = blocks.head_dim, padded = (dim + kPanel - 1) / kPanel * kPanel;
  const bool scaled = std::is_same_v<Element, int8_t>;  // others have no scales to point to
  for (int64_t m = begin, rows; m < end; m += rows) {
    rows = run_of_slots(job, m, end);
    const int64_t block = job.slots[m] / blocks.block_size, place = job.slots[m] % blocks.block_size;
    for (int64_t h = 0; h < blocks.kv_heads; ++h) {
      const int64_t head = (block * blocks.kv_heads + h) * blocks.block_size;
      const float* new_keys = job.keys + m * job.key_stride + h * dim;
      float* key_scales = scaled ? blocks.key_scales + head + place : nullptr;
      Element* keys = static_cast<Element*>(blocks.keys) + head * dim + place;
      store_head(new_keys, job.key_stride, rows, dim, key_scales, keys, blocks.block_size);
      for (int64_t t = 0; t < rows; ++t) {
        const float* new_values = job.values + (m + t) * job.value_stride + h * dim;
        float* value_scale = scaled ? blocks.value_scales + head + place + t : nullptr;
        Element* values = static_cast<Element*>(blocks.values) + (head + place + t) * padded;
        store_head(new_values, 0, 1, dim, value_scale, values, 1);
        std::fill(values + dim, values + padded, Element(0));
      }
    }
  }
}

// Products of the same activations, shared out as one.
struct Linears {
  const LinearJob* jobs;
  int64_t count;
};

int64_t linears_items(const Linears& all) {
  int64_t items = 0;
  for (int64_t i = 0; i < all.count; ++i) items += chosen().linear_items(all.jobs[i]);
  return items;
}

void linears(const Linears& all, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < all.count && end > 0; ++i) {
    const LinearJob& job = all.jobs[i];
    const int64_t items = chosen().linear_items(job);
    const auto kernel = job.weight.bits == 4 ? chosen().linear_nibbles : chosen().linear_bytes;
    if (begin < items) kernel(job, begin, std::min(end, items));
    begin = std::max<int64_t>(0, begin - items), end -= items;
  }
}

void perform(const GatherJob& job) { run(packing::gather, job, job.count, rows_worthwhile(job.width)); }

void perform(const QuantizeJob& job) { run(chosen().quantize, job, job.out.rows, rows_worthwhile(job.width)); }

void perform(const Linears& all) { run(linears, all, linears_items(all), 1); }

void perform(const LinearJob& job) { perform(Linears{&job, 1}); }

void perform(const NormJob& job) { run(chosen().norm, job, job.rows, rows_worthwhile(job.width)); }

void perform(const RopeJob& job) { run(chosen().rope, job, job.rows, rows_worthwhile(job.heads * job.dims)); }

void perform(const ActivateJob& job) { run(chosen().activate, job, job.rows, rows_worthwhile(job.width)); }

void perform(const AddJob& job) { run(chosen().add, job, job.count, kWorthwhile); }

void perform(const MixJob& job) { run(chosen().mix, job, job.rows, rows_worthwhile(job.width * (1 + job.terms))); }

void perform(const GateJob& job) { run(chosen().gate, job, job.rows, rows_worthwhile(job.heads * job.head_dim)); }

void perform(const CombineJob& job) {
  run(chosen().combine, job, job.rows, rows_worthwhile(job.width * (1 + job.choices)));
}

void perform(const ChooseJob& job) { run(chosen().choose, job, job.rows, rows_worthwhile(job.width)); }

void perform(const StoreJob& job) {
  const int32_t bits = job.blocks.bits;
  const auto kernel = bits == 8 ? store_rows<int8_t> : bits == 16 ? store_rows<uint16_t> : store_rows<float>;
  // Each number of a key has a cache line of its own.
  run(kernel, job, job.rows, rows_worthwhile(8 * job.blocks.kv_heads * job.blocks.head_dim));
}

void perform(const AttentionJob& job) { run(chosen().attend, job, chosen().attention_items(job), 1); }

#include "program.h"

}  // namespace

extern "C" {

int groundup_level() { return chosen_level.load(); }

// 1 if this machine can run the level, which it then does, else 0. Not while other calls run.
int groundup_set_level(int number) {
  if (level(number) == nullptr) return 0;
  chosen_level.store(number);
  return 1;
}

// Threads that calls use, the calling one included. Not while other calls run.
void groundup_set_threads(int threads) { pool::set_threads(threads); }

void groundup_gather(const GatherJob* job) { perform(*job); }
void groundup_quantize(const QuantizeJob* job) { perform(*job); }
void groundup_linear(const LinearJob* job) { perform(*job); }
void groundup_norm(const NormJob* job) { perform(*job); }
void groundup_rope(const RopeJob* job) { perform(*job); }
void groundup_activate(const ActivateJob* job) { perform(*job); }
void groundup_add(const AddJob* job) { perform(*job); }
void groundup_choose(const ChooseJob* job) { perform(*job); }
void groundup_store(const StoreJob* job) { perform(*job); }
void groundup_attend(const AttentionJob* job) { perform(*job); }
void groundup_program(const ProgramJob* job) { perform(*job); }

}  // extern "C"
