// The kernels of the engine on CPUs, as a C library: what a model's step is made of, on plain pointers.
//
// Everything is compiled once for every instruction set (level.h) and chosen when the library is loaded; nothing here
// needs a flag for the machine it is built on. Floating-point contraction is off: a·b + c is fused where `fma` says so
// and nowhere else, so that a number does not depend on what the compiler made of the loop around it.
//
// jobs.h: what a call is told; pool.h: threads; packing.h: the layout of weights; lanes.h, arithmetic.h: one register
// and what is made of it; matrix_registers.h: the large ones of AMX; blocks.h: where keys and values lie; peaks.h: what is
// known of logits; linear.h, floating.h, low_rank.h, pointwise.h, store.h, attention.h, choose.h: the kernels; program.h:
// many of them in one call. Callers check sizes: nothing is checked here.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#endif
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "jobs.h"
#include "packing.h"
#include "pool.h"

namespace {

// Below this a row of activations counts as zero; 127 divided by it is still finite.
constexpr float kSmallest = 1e-30f;
// Numbers below which a thread's help costs more than it brings.
constexpr int64_t kWorthwhile = 4096;

// The kernels of one level. Each works on the items begin … end - 1 of its job.
struct Kernels {
  void (*quantize)(const QuantizeJob&, int64_t, int64_t);
  int64_t (*round_items)(const RoundJob&);
  void (*round)(const RoundJob&, int64_t, int64_t);
  int64_t (*linear_items)(const LinearJob&);
  void (*linear[kFormats])(const LinearJob&, int64_t, int64_t);
  int64_t (*down_items)(const LowRankJob&);
  void (*down)(const LowRankJob&, int64_t, int64_t);
  int64_t (*up_items)(const LowRankJob&);
  void (*up)(const LowRankJob&, int64_t, int64_t);
  void (*norm)(const NormJob&, int64_t, int64_t);
  void (*rope)(const RopeJob&, int64_t, int64_t);
  void (*activate)(const ActivateJob&, int64_t, int64_t);
  void (*add)(const AddJob&, int64_t, int64_t);
  void (*mix)(const MixJob&, int64_t, int64_t);
  void (*gate)(const GateJob&, int64_t, int64_t);
  void (*combine)(const CombineJob&, int64_t, int64_t);
  void (*choose)(const ChooseJob&, int64_t, int64_t);
  void (*store)(const StoreJob&, int64_t, int64_t);
  int64_t (*attention_items)(const AttentionJob&);
  void (*attend)(const AttentionJob&, int64_t, int64_t);
};

// Compilers before these know neither the instructions of the last two levels nor how to ask for them.
#if defined(__clang__) || __GNUC__ >= 11
#define KNOWS_BFLOAT16 1
#else
#define KNOWS_BFLOAT16 0
#endif

// Between ALLOW and ALLOW_NO_MORE functions may use these instructions.
#define PRAGMA(...) _Pragma(#__VA_ARGS__)
#if defined(__clang__)
#define ALLOW(instructions) PRAGMA(clang attribute push(__attribute__((target(instructions))), apply_to = function))
#define ALLOW_NO_MORE PRAGMA(clang attribute pop)
#else
#define ALLOW(instructions) PRAGMA(GCC push_options) PRAGMA(GCC target(instructions, "prefer-vector-width=512"))
#define ALLOW_NO_MORE PRAGMA(GCC pop_options)
#endif

#define GROUNDUP_LEVEL 0
namespace portable {
#include "level.h"
}
#undef GROUNDUP_LEVEL

#if defined(__x86_64__)
ALLOW("avx2,fma,f16c")
#define GROUNDUP_LEVEL 1
namespace avx2 {
#include "level.h"
}
#undef GROUNDUP_LEVEL
ALLOW_NO_MORE

ALLOW("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")
#define GROUNDUP_LEVEL 2
namespace avx512 {
#include "level.h"
}
#undef GROUNDUP_LEVEL
ALLOW_NO_MORE

#if KNOWS_BFLOAT16
ALLOW("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16")
#define GROUNDUP_LEVEL 3
namespace avx512_bf16 {
#include "level.h"
}
#undef GROUNDUP_LEVEL
ALLOW_NO_MORE

ALLOW("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,amx-tile,amx-int8,amx-bf16")
#define GROUNDUP_LEVEL 4
namespace amx {
#include "level.h"
}
#undef GROUNDUP_LEVEL
ALLOW_NO_MORE

// Whether the processor has matrix registers for bytes and bfloat16, and the system lets this process use them: it has to
// be asked once.
bool has_amx() {
#if defined(__linux__)
  constexpr unsigned kBfloat16 = 1u << 22, kTiles = 1u << 24, kBytes = 1u << 25, kAll = kBfloat16 | kTiles | kBytes;
  constexpr long kAskFor = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  unsigned a, b, c, d;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kAll) != kAll) return false;
  return syscall(SYS_arch_prctl, kAskFor, kTileData) == 0;
#else
  return false;
#endif
}
#endif
#endif

#if defined(__x86_64__)
// Numbers of half precision, which not every compiler can be asked for.
bool has_f16c() {
  unsigned a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
}
#endif

// Levels from 0: portable, avx2, avx512, avx512_bf16, amx. Null for those that this machine cannot run.
const Kernels* level(int number) {
  if (number == 0) return &portable::kernels;
#if defined(__x86_64__)
  __builtin_cpu_init();
#define HAS __builtin_cpu_supports
  const bool has_avx2 = HAS("avx2") && HAS("fma") && has_f16c();
  const bool has_avx512 = HAS("avx512f") && HAS("avx512bw") && HAS("avx512vl") && HAS("avx512dq") && HAS("avx512vnni");
#undef HAS
  if (number == 1 && has_avx2) return &avx2::kernels;
  if (number == 2 && has_avx2 && has_avx512) return &avx512::kernels;
#if KNOWS_BFLOAT16
  const bool has_bfloat16 = has_avx2 && has_avx512 && __builtin_cpu_supports("avx512bf16");
  if (number == 3 && has_bfloat16) return &avx512_bf16::kernels;
  if (number == 4 && has_bfloat16 && has_amx()) return &amx::kernels;
#endif
#endif
  return nullptr;
}

int best_level() {
  int best = 4;
  while (level(best) == nullptr) --best;
  return best;
}

std::atomic<int> chosen_level{best_level()};
std::atomic<const Kernels*> chosen_kernels{level(chosen_level.load())};

const Kernels& chosen() { return *chosen_kernels.load(std::memory_order_relaxed); }

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

// Jobs of one kernel that are shared out as one.
template <typename Job>
struct Several {
  const Job* jobs;
  int64_t count;
  int64_t (*items)(const Job&);
  void (*kernel)(const Job&, int64_t, int64_t);
};

template <typename Job>
void several(const Several<Job>& all, int64_t begin, int64_t end) {
  for (int64_t i = 0; i < all.count && end > 0; ++i) {
    const int64_t items = all.items(all.jobs[i]);
    if (begin < items) all.kernel(all.jobs[i], begin, std::min(end, items));
    begin = std::max<int64_t>(0, begin - items), end -= items;
  }
}

template <typename Job>
void run(const Several<Job>& all, int64_t grain) {
  int64_t items = 0;
  for (int64_t i = 0; i < all.count; ++i) items += all.items(all.jobs[i]);
  run(several<Job>, all, items, grain);
}

// The rows of a job that are worked on each by itself, of so many numbers.
template <typename Job>
struct Rows {
  void (*kernel)(const Job&, int64_t, int64_t);
  int64_t count, width;
};

Rows<GatherJob> rows_of(const GatherJob& job) { return {packing::gather, job.count, job.width}; }
Rows<QuantizeJob> rows_of(const QuantizeJob& job) { return {chosen().quantize, job.out.rows, job.width}; }
Rows<NormJob> rows_of(const NormJob& job) { return {chosen().norm, job.rows, job.width}; }
Rows<RopeJob> rows_of(const RopeJob& job) { return {chosen().rope, job.rows, job.heads * job.dims}; }
Rows<ActivateJob> rows_of(const ActivateJob& job) { return {chosen().activate, job.rows, job.width}; }
Rows<AddJob> rows_of(const AddJob& job) { return {chosen().add, job.count, 1}; }
Rows<MixJob> rows_of(const MixJob& job) { return {chosen().mix, job.rows, job.width * (1 + job.terms)}; }
Rows<GateJob> rows_of(const GateJob& job) { return {chosen().gate, job.rows, job.heads * job.head_dim}; }
Rows<CombineJob> rows_of(const CombineJob& job) { return {chosen().combine, job.rows, job.width * (1 + job.choices)}; }
Rows<ChooseJob> rows_of(const ChooseJob& job) { return {chosen().choose, job.rows, job.width}; }
Rows<StoreJob> rows_of(const StoreJob& job) {
  // Each number of a key has a cache line of its own.
  return {chosen().store, job.rows, 8 * job.blocks.kv_heads * job.blocks.head_dim};
}

template <typename Job>
void perform(const Job& job) {
  const Rows<Job> rows = rows_of(job);
  run(rows.kernel, job, rows.count, rows_worthwhile(rows.width));
}

void perform(const RoundJob& job) {
  const int64_t items = chosen().round_items(job);
  run(chosen().round, job, items, rows_worthwhile(job.out.rows * job.width / std::max<int64_t>(1, items)));
}

void linear(const LinearJob& job, int64_t begin, int64_t end) {
  chosen().linear[job.weight.format](job, begin, end);
}

void perform(const LinearJob* jobs, int64_t count) {
  run(Several<LinearJob>{jobs, count, chosen().linear_items, linear}, 1);
}

void perform(const LinearJob& job) { perform(&job, 1); }

void perform(const LowRankJob* jobs, int64_t count) {
  run(Several<LowRankJob>{jobs, count, chosen().down_items, chosen().down}, rows_worthwhile(kRankMultiple * jobs->width));
  run(Several<LowRankJob>{jobs, count, chosen().up_items, chosen().up}, rows_worthwhile(kRowMultiple * jobs->change.rank));
}

void perform(const AttentionJob& job) { run(chosen().attend, job, chosen().attention_items(job), 1); }

#include "program.h"

}  // namespace

extern "C" {

int groundup_level() { return chosen_level.load(); }

// 1 if this machine can run the level, which it then does, else 0. Not while other calls run.
int groundup_set_level(int number) {
  const Kernels* found = level(number);
  if (found == nullptr) return 0;
  chosen_level.store(number), chosen_kernels.store(found);
  return 1;
}

// Threads that calls use, the calling one included. Not while other calls run.
void groundup_set_threads(int threads) { pool::set_threads(threads); }

void groundup_gather(const GatherJob* job) { perform(*job); }
void groundup_quantize(const QuantizeJob* job) { perform(*job); }
void groundup_round(const RoundJob* job) { perform(*job); }
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
