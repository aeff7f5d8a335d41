// Runs every function of the kernels over random shapes, with buffers that end exactly where the data ends, so that the
// address sanitizer sees a step too far. Prints the number of calls. Results are compared elsewhere: here they must be
// finite. Built by test_kernels_sanitized.py together with kernels.cpp.

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <thread>
#include <type_traits>
#include <vector>

#include "jobs.h"

extern "C" {
int groundup_set_level(int);
void groundup_set_threads(int);
void groundup_gather(const GatherJob*);
void groundup_quantize(const QuantizeJob*);
void groundup_round(const RoundJob*);
void groundup_linear(const LinearJob*);
void groundup_norm(const NormJob*);
void groundup_rope(const RopeJob*);
void groundup_activate(const ActivateJob*);
void groundup_add(const AddJob*);
void groundup_choose(const ChooseJob*);
void groundup_store(const StoreJob*);
void groundup_attend(const AttentionJob*);
void groundup_program(const ProgramJob*);
}

namespace {

std::mt19937 draw(0);

int64_t up_to(int64_t most) { return 1 + draw() % most; }
int64_t padded(int64_t number, int64_t multiple) { return (number + multiple - 1) / multiple * multiple; }

// Memory with a page behind it that must not be touched: instructions that the sanitizers do not know, which load and
// store matrix registers, are caught by it. Half of all memory, for the other half has what sanitizers put around it.
struct Release {
  void* pages;
  size_t bytes;
  template <typename Number>
  void operator()(Number* numbers) const {
    if (pages == nullptr) delete[] numbers;
    else munmap(pages, bytes);
  }
};
template <typename Number>
using Numbers = std::unique_ptr<Number[], Release>;

template <typename Number>
Numbers<Number> allocate(int64_t count) {
  if (draw() % 2) return {new Number[count], Release{nullptr, 0}};
  const size_t page = sysconf(_SC_PAGESIZE), inner = padded(count * sizeof(Number), page);
  char* pages = static_cast<char*>(mmap(nullptr, inner + page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (pages == MAP_FAILED || mprotect(pages + inner, page, PROT_NONE) != 0) std::exit(3);
  return {reinterpret_cast<Number*>(pages + inner) - count, Release{pages, inner + page}};
}

template <typename Number>
Numbers<Number> random(int64_t count) {
  auto numbers = allocate<Number>(count);
  for (int64_t i = 0; i < count; ++i) {
    if constexpr (std::is_integral_v<Number>) numbers[i] = static_cast<Number>(draw());
    else numbers[i] = std::normal_distribution<Number>(0, 3)(draw);
  }
  return numbers;
}

void require_finite(const float* numbers, int64_t count, const char* what) {
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(numbers[i])) std::printf("%s: number %ld is %f\n", what, long(i), numbers[i]), std::exit(1);
  }
}

void linear() {
  const int64_t bits = draw() % 2 ? 4 : 8, width = up_to(500), rows = up_to(150), tokens = up_to(draw() % 2 ? 20 : 80);
  const int64_t group = bits == 8 ? 32 : draw() % 2 ? 128 : 32, columns = padded(width, group);
  Matrix matrix{nullptr, nullptr, rows, columns, bits == 8 ? columns : group, bits == 8 ? kW8 : kW4};
  const int64_t groups = columns / matrix.group, all_rows = padded(rows, kRowMultiple);
  auto values = random<uint8_t>(all_rows * columns * bits / 8);
  auto scales = random<uint16_t>(all_rows * groups * (bits == 4 ? 1 : 2));
  for (int64_t i = 0; i < all_rows * groups; ++i) {
    if (bits == 4) scales[i] = 0x3c00;
    else reinterpret_cast<float*>(scales.get())[i] = 1.0f;
  }
  matrix.values = values.get(), matrix.scales = scales.get();

  const int64_t stride = padded(width, 128), apart = width + draw() % 3;
  auto x = random<float>((tokens - 1) * apart + width), bias = random<float>(rows), token_scales = random<float>(tokens);
  auto bytes = random<int8_t>(tokens * stride);
  auto sums = random<int32_t>(tokens * (stride / kSumColumns + 1));
  const Activations activations{bytes.get(), token_scales.get(), sums.get(), tokens, 0, stride};
  const QuantizeJob quantize{x.get(), apart, width, activations};
  groundup_quantize(&quantize);
  auto out = random<float>(tokens * rows);
  auto peaks = allocate<Peak>(tokens * ((rows + kPanel - 1) / kPanel));
  const LinearJob job{matrix, activations, draw() % 2 ? bias.get() : nullptr, draw() % 2 ? out.get() : nullptr,
                      out.get(), rows, draw() % 2 ? peaks.get() : nullptr, (rows + kPanel - 1) / kPanel};
  groundup_linear(&job);
  require_finite(out.get(), tokens * rows, "linear");
  const std::vector<Draw> draws(tokens, Draw{0, 0, 1, 0, 0});
  std::vector<Chosen> chosen(tokens);
  const ChooseJob choose{out.get(), draws.data(), chosen.data(), tokens, rows, rows, job.peaks, job.peak_stride};
  groundup_choose(&choose);

  auto ids = std::make_unique<int64_t[]>(tokens);
  for (int64_t i = 0; i < tokens; ++i) ids[i] = int64_t(draw() % (rows + 1)) - 1;
  auto gathered = random<float>(tokens * width);
  const GatherJob gather{matrix, ids.get(), tokens, gathered.get(), width};
  groundup_gather(&gather);
  require_finite(gathered.get(), tokens * width, "gather");
}

// Numbers of a floating format that are small and not special.
Numbers<uint8_t> weights_of(int64_t format, int64_t count) {
  auto bytes = allocate<uint8_t>(count * (format == kFloat32 ? 4 : 2));
  for (int64_t i = 0; i < count; ++i) {
    if (format == kFloat32) reinterpret_cast<float*>(bytes.get())[i] = float(int64_t(draw() % 9) - 4);
    else reinterpret_cast<uint16_t*>(bytes.get())[i] = uint16_t(0x3c00 | draw() % 64);
  }
  return bytes;
}

void floating() {
  const int64_t format = kFloat32 + draw() % 4, columns = up_to(draw() % 2 ? 300 : 1200), rows = up_to(150);
  const int64_t tokens = up_to(draw() % 2 ? 20 : 300), apart = columns + draw() % 3;
  auto values = weights_of(format, rows * columns);
  const Matrix matrix{values.get(), nullptr, rows, columns, columns, format};
  auto x = random<float>((tokens - 1) * apart + columns), bias = random<float>(rows);
  const int64_t stride = padded(columns, 128);
  auto rounded = allocate<float>(padded(tokens, 16) * stride);
  Activations activations{x.get(), nullptr, nullptr, tokens, 0, apart};
  if (format == kBfloat16) {
    activations.values = rounded.get(), activations.stride = stride;
    const RoundJob round{x.get(), apart, columns, activations};
    groundup_round(&round);
  }
  activations.first = draw() % tokens, activations.rows = tokens - activations.first;
  auto out = random<float>(activations.rows * rows);
  auto peaks = allocate<Peak>(activations.rows * ((rows + kPanel - 1) / kPanel));
  const LinearJob job{matrix, activations, draw() % 2 ? bias.get() : nullptr, draw() % 2 ? out.get() : nullptr,
                      out.get(), rows, draw() % 2 ? peaks.get() : nullptr, (rows + kPanel - 1) / kPanel};
  groundup_linear(&job);
  require_finite(out.get(), activations.rows * rows, "floating");
  const std::vector<int64_t> ids{rows - 1, -1, 0};
  auto gathered = random<float>(3 * columns);
  const GatherJob gather{matrix, ids.data(), 3, gathered.get(), columns};
  groundup_gather(&gather);
  require_finite(gathered.get(), 3 * columns, "gather");
}

void pointwise() {
  const int64_t rows = up_to(40), width = up_to(700), apart = width + draw() % 3, span = (rows - 1) * apart + width;
  auto x = random<float>(span), y = random<float>(span), weight = random<float>(width), out = random<float>(rows * width);
  const NormJob norm{x.get(), out.get(), draw() % 2 ? weight.get() : nullptr, draw() % 2 ? weight.get() : nullptr, rows,
                     width, apart, width, 1, 1e-5f, int32_t(draw() % 2), int32_t(draw() % 2)};
  groundup_norm(&norm);
  require_finite(out.get(), rows * width, "norm");
  const ActivateJob activate{x.get(), draw() % 2 ? y.get() : nullptr, out.get(), rows, width, apart, apart, width,
                             int32_t(draw() % kActivations), 1.5f, 2.0f, 1.0f};
  groundup_activate(&activate);
  require_finite(out.get(), rows * width, "activate");
  const AddJob add{x.get(), y.get(), span};
  groundup_add(&add);

  const int64_t heads = up_to(4), half = up_to(40), head_dim = 2 * half + draw() % 3, places = up_to(9);
  auto turned = random<float>(rows * heads * head_dim), tables = random<float>(places * half);
  auto positions = std::make_unique<int32_t[]>(rows);
  for (int64_t i = 0; i < rows; ++i) positions[i] = draw() % places;
  const RopeJob rope{turned.get(), tables.get(), tables.get(), positions.get(), rows, heads, head_dim, 2 * half,
                     heads * head_dim, int32_t(draw() % 2)};
  groundup_rope(&rope);
  require_finite(turned.get(), rows * heads * head_dim, "rope");
}

// Draws by all kinds of settings from logits of which some are equal, some banned, and some no numbers.
void choose() {
  const int64_t rows = up_to(6), width = up_to(3000), apart = width + draw() % 3;
  auto logits = random<float>((rows - 1) * apart + width);
  for (int64_t i = 0; i < rows; ++i) {
    float* row = logits.get() + i * apart;
    const uint32_t kind = draw() % 8;
    for (int64_t j = 0; j < width; ++j) {
      if (kind == 0) row[j] = 1.0f;
      if (kind == 1) row[j] = std::round(row[j]);
      if (kind == 2 && j % 3 != 0) row[j] = -INFINITY;
      if (kind == 3) row[j] = row[j] * 1e30f;
      if (kind == 4 && j == width / 2) row[j] = draw() % 2 ? NAN : INFINITY;
    }
  }
  const auto uniform = [] { return draw() / 4294967296.0; };
  std::vector<Draw> draws(rows);
  for (Draw& one : draws) {
    const double temperatures[] = {0, 1e-30, 0.7, 1, 1e30}, numbers[] = {0, 0.9999999999999999, uniform()};
    one.temperature = temperatures[draw() % 5], one.number = numbers[draw() % 3];
    one.top_k = draw() % 2 ? 0 : int64_t(draw() % (width + 2));
    one.top_p = draw() % 2 ? 1 : draw() % 2 ? uniform() : 1 - 1e-9;
    one.min_p = draw() % 2 ? 0 : uniform();
  }
  std::vector<Chosen> chosen(rows);
  const ChooseJob job{logits.get(), draws.data(), chosen.data(), rows, width, apart};
  groundup_choose(&job);
  for (const Chosen& one : chosen) {
    if (one.token < 0 || one.token >= width) std::printf("choose: token %ld\n", long(one.token)), std::exit(1);
  }
}

// One instruction for so many tokens.
void instruct(Operation operation, const void* job, int64_t tokens) {
  const Instruction instruction{operation, job, 1};
  ProgramJob program{};
  program.instructions = &instruction, program.count = 1, program.tokens = tokens;
  groundup_program(&program);
}

void mixtures() {
  const int64_t rows = up_to(30), width = up_to(400), terms = up_to(9), heads = up_to(4), dim = up_to(70);
  const int64_t channels = up_to(width), choices = up_to(4);
  auto x = random<float>(rows * width), streams = random<float>(terms * rows * width);
  auto weights = random<float>(2 * (1 + terms)), gates = random<float>(terms * width);
  std::vector<int64_t> kinds(rows), places(rows * choices);
  for (int64_t& kind : kinds) kind = draw() % 2;
  for (int64_t& place : places) place = draw() % rows;
  const MixJob mix{x.get(), streams.get(), weights.get(), draw() % 2 ? gates.get() : nullptr, kinds.data(), 0, width,
                   terms, rows * width};
  instruct(kMix, &mix, rows);
  require_finite(x.get(), rows * width, "mix");
  auto opened = random<float>(rows * width), gate_weight = random<float>(heads * channels);
  auto out = random<float>(rows * heads * dim);
  const GateJob gate{opened.get(), gate_weight.get(), out.get(), draw() % 2 ? out.get() : nullptr, out.get(), 0, heads,
                     dim, channels, width, 2.0f};
  instruct(kGate, &gate, rows);
  require_finite(out.get(), rows * heads * dim, "gate");
  auto shares = random<float>(rows * choices), sum = random<float>(rows * width);
  const CombineJob combine{opened.get(), shares.get(), places.data(), draw() % 2 ? sum.get() : nullptr, sum.get(), 0,
                           width, choices};
  instruct(kCombine, &combine, rows);
  require_finite(sum.get(), rows * width, "combine");
}

// So many numbers of 32 or 16 bits, in memory that ends behind the last of them.
Numbers<float> floats(int64_t count, int32_t bits) {
  if (bits == 32) return random<float>(count);
  auto wide = random<float>(count), narrow = allocate<float>(count / 2);
  const auto* halves = reinterpret_cast<const char*>(wide.get());
  for (int64_t i = 0; i < count; ++i) std::memcpy(reinterpret_cast<char*>(narrow.get()) + 2 * i, halves + 4 * i + 2, 2);
  return narrow;
}

// Two linear maps and a table, and two adapters, of which the second leaves the first map alone.
void adapters() {
  const int64_t tokens = up_to(20), width = up_to(300), outputs = up_to(150), rows = up_to(9);
  auto x = random<float>(tokens * width), out = random<float>(3 * tokens * outputs);
  std::vector<int64_t> ids(tokens), places[2];
  for (int64_t& id : ids) id = draw() % rows;
  for (int64_t i = 0; i < tokens; ++i) places[draw() % 2].push_back(i);
  std::vector<AdaptJob> jobs;
  for (int64_t i = 0; i < 3; ++i) {
    const bool is_table = i == 2;
    jobs.push_back({is_table ? nullptr : x.get(), is_table ? ids.data() : nullptr, out.get() + i * tokens * outputs,
                    is_table ? rows : width, outputs, i});
  }
  std::vector<LowRank> changes[2];
  std::vector<Numbers<float>> kept;
  std::vector<AdaptedTokens> adapted;
  for (int64_t a = 0; a < 2; ++a) {
    const int64_t rank = 4 * up_to(6);
    for (int64_t i = 0; i < 3; ++i) {
      const int32_t down_bits = i < 2 && draw() % 2 ? 16 : 32, up_bits = draw() % 2 ? 16 : 32;
      kept.push_back(floats((i < 2 ? padded(width, 16) : rows) * rank, down_bits));
      kept.push_back(floats(padded(outputs, kRowMultiple) * rank, up_bits));
      const void* down = a == 1 && i == 0 ? nullptr : kept[kept.size() - 2].get();
      changes[a].push_back({down, kept.back().get(), rank, down_bits, up_bits});
    }
    if (!places[a].empty()) adapted.push_back({changes[a].data(), places[a].data(), int64_t(places[a].size())});
  }
  if (adapted.size() == 1 && draw() % 2) adapted[0].tokens = nullptr;
  const Instruction instruction{kAdapt, jobs.data(), 3};
  ProgramJob program{};
  program.instructions = &instruction, program.count = 1, program.tokens = tokens;
  program.adapted = adapted.data(), program.adapters = int64_t(adapted.size());
  groundup_program(&program);
  require_finite(out.get(), 3 * tokens * outputs, "adapters");
}

// Two matrices for each of three groups, one of which has no rows.
void grouped() {
  const int64_t rows = up_to(20), columns = padded(up_to(300), 32), outputs = up_to(100), stride = padded(columns, 128);
  auto values = random<uint8_t>(padded(outputs, kRowMultiple) * columns);
  auto scales = random<float>(padded(outputs, kRowMultiple)), x = random<float>(rows * columns);
  auto bytes = random<int8_t>(rows * stride);
  auto row_scales = random<float>(rows);
  auto sums = random<int32_t>(rows * (stride / kSumColumns + 1));
  const Activations activations{bytes.get(), row_scales.get(), sums.get(), 1, 0, stride};
  const QuantizeJob quantize{x.get(), columns, columns, activations};
  instruct(kQuantize, &quantize, rows);
  const int64_t starts[] = {0, rows / 3, rows / 3, rows};
  auto out = random<float>(2 * rows * outputs);
  std::vector<LinearJob> products;
  for (int64_t i = 0; i < 6; ++i) {
    const Matrix matrix{values.get(), scales.get(), outputs, columns, columns, kW8};
    products.push_back({matrix, activations, nullptr, nullptr, out.get() + i / 3 * rows * outputs, outputs});
  }
  const GroupedJob job{products.data(), 6, 3, starts};
  instruct(kGrouped, &job, rows);
  require_finite(out.get(), 2 * rows * outputs, "grouped");
}

void attention() {
  const int64_t sequences = up_to(3), kv_heads = up_to(3), heads = kv_heads * up_to(5);
  const int64_t dim = draw() % 2 ? up_to(140) : 32 * up_to(4);
  const int64_t size = 16 * up_to(3), most = up_to(4), pool = sequences * most, bits = 8 << draw() % 3;
  const int64_t key_dims = bits == 16 ? padded(dim, 2) : dim;
  auto keys = random<float>(pool * kv_heads * key_dims * size * bits / 32);
  auto values = random<float>(pool * kv_heads * size * padded(dim, 16) * bits / 32);
  auto key_scales = random<float>(pool * kv_heads * size), value_scales = random<float>(pool * kv_heads * size);
  const KeyValueBlocks blocks{keys.get(), values.get(), bits == 8 ? key_scales.get() : nullptr,
                              bits == 8 ? value_scales.get() : nullptr, kv_heads, dim, size, int32_t(bits)};
  std::vector<int32_t> table(pool), starts{0}, counts;
  for (int64_t i = 0; i < pool; ++i) table[i] = int32_t(pool - 1 - i);
  for (int64_t s = 0; s < sequences; ++s) {
    counts.push_back(int32_t(up_to(most * size)));
    starts.push_back(starts.back() + int32_t(up_to(counts.back())));
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < counts.back(); ++i) slots.push_back(table[s * most + i / size] * size + i % size);
    auto k = random<float>(counts.back() * kv_heads * dim);
    const StoreJob store{blocks, k.get(), k.get(), slots.data(), counts.back(), kv_heads * dim, kv_heads * dim, 0};
    groundup_store(&store);
  }
  const int64_t tokens = starts.back();
  auto queries = random<float>(tokens * heads * dim), out = random<float>(tokens * heads * dim), sinks = random<float>(heads);
  const AttentionJob job{blocks, queries.get(), out.get(), table.data(), starts.data(), counts.data(),
                         draw() % 2 ? sinks.get() : nullptr, sequences, heads, heads * dim, heads * dim, most,
                         int64_t(draw() % 40), 0, 0.1f, draw() % 2 ? 5.0f : 0.0f};
  groundup_attend(&job);
  require_finite(out.get(), tokens * heads * dim, "attention");
}

}  // namespace

int main() {
  int rounds = 0;
  for (int level = 0; level < 5; ++level) {
    if (!groundup_set_level(level)) continue;
    for (const int threads : {1, 3}) {
      groundup_set_threads(threads);
      for (int i = 0; i < 60; ++i, ++rounds) linear(), floating(), pointwise(), choose(), mixtures(), grouped(), adapters(), attention();
    }
  }
  std::vector<std::thread> callers;  // several threads ask the pool at once
  groundup_set_threads(2);
  for (int i = 0; i < 4; ++i) {
    callers.emplace_back([] {
      std::vector<float> x(100000, 1.0f), y(100000, 2.0f);
      const AddJob add{x.data(), y.data(), int64_t(x.size())};
      for (int j = 0; j < 200; ++j) groundup_add(&add);
      if (x[99999] != 401.0f) std::exit(2);
    });
  }
  for (std::thread& caller : callers) caller.join();
  groundup_set_threads(1);
  std::printf("%d rounds\n", rounds);
}
