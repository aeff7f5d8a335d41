// A whole step in one call: see Instruction.
//
// A job of a program is as the same job alone, but for what changes from step to step, which `fitted` fills in.
#pragma once

// Matrices that are multiplied by the same activations at once: of queries, keys and values.
constexpr int64_t kMostLinears = 8;

inline QuantizeJob fitted(QuantizeJob job, const ProgramJob& step) {
  job.out.rows *= step.tokens;
  return job;
}

inline RoundJob fitted(RoundJob job, const ProgramJob& step) {
  job.out.rows *= step.tokens;
  return job;
}

inline LinearJob fitted(LinearJob job, const ProgramJob& step) {
  job.input.rows = step.tokens;
  return job;
}

inline NormJob fitted(NormJob job, const ProgramJob& step) {
  job.rows *= step.tokens;
  return job;
}

inline RopeJob fitted(RopeJob job, const ProgramJob& step) {
  job.rows = step.tokens, job.positions = step.positions;
  return job;
}

inline ActivateJob fitted(ActivateJob job, const ProgramJob& step) {
  job.rows = step.tokens;
  return job;
}

inline AddJob fitted(AddJob job, const ProgramJob& step) {
  job.count *= step.tokens;
  return job;
}

inline StoreJob fitted(StoreJob job, const ProgramJob& step) {
  job.rows = step.tokens, job.slots = job.windowed ? step.window_slots : step.slots;
  return job;
}

inline AttentionJob fitted(AttentionJob job, const ProgramJob& step) {
  job.block_table = job.windowed ? step.window_table : step.block_table, job.table_stride = step.table_stride;
  job.query_starts = step.query_starts, job.key_counts = step.key_counts, job.sequences = step.sequences;
  return job;
}

inline GatherJob fitted(GatherJob job, const ProgramJob& step) {
  job.count = step.tokens;
  return job;
}

inline MixJob fitted(MixJob job, const ProgramJob& step) {
  job.rows = step.tokens;
  return job;
}

inline GateJob fitted(GateJob job, const ProgramJob& step) {
  job.rows = step.tokens;
  return job;
}

inline CombineJob fitted(CombineJob job, const ProgramJob& step) {
  job.rows = step.tokens;
  return job;
}

inline void perform_linears(const Instruction& instruction, const ProgramJob& step) {
  LinearJob jobs[kMostLinears];
  for (int64_t i = 0; i < instruction.jobs; ++i) {
    jobs[i] = fitted(static_cast<const LinearJob*>(instruction.job)[i], step);
  }
  perform(jobs, instruction.jobs);
}

inline void perform_grouped(const GroupedJob& job) {
  std::vector<LinearJob> jobs;
  for (int64_t i = 0; i < job.count; ++i) {
    const int64_t begin = job.starts[i % job.groups], rows = job.starts[i % job.groups + 1] - begin;
    if (rows == 0) continue;
    jobs.push_back(job.products[i]);
    jobs.back().input.first = begin, jobs.back().input.rows = rows;
    jobs.back().out += begin * jobs.back().out_stride;
  }
  perform(jobs.data(), static_cast<int64_t>(jobs.size()));
}

inline void perform_adapt(const Instruction& instruction, const ProgramJob& step) {
  std::vector<LowRankJob> jobs;
  int64_t numbers = 0;
  for (int64_t a = 0; a < step.adapters; ++a) {
    const AdaptedTokens& adapted = step.adapted[a];
    for (int64_t i = 0; i < instruction.jobs; ++i) {
      const AdaptJob& job = static_cast<const AdaptJob*>(instruction.job)[i];
      const LowRank& change = adapted.changes[job.number];
      if (change.down == nullptr) continue;
      jobs.push_back({change, job.input, job.ids, adapted.tokens, nullptr, job.out, adapted.count, job.width, job.outputs});
      numbers += adapted.count * change.rank;
    }
  }
  if (jobs.empty()) return;
  const std::unique_ptr<float[]> between(new float[numbers]);
  for (LowRankJob& job : jobs) numbers -= job.count * job.change.rank, job.between = between.get() + numbers;
  perform(jobs.data(), static_cast<int64_t>(jobs.size()));
}

// Calls `use` with the job of an instruction that treats each token by itself; false for the others.
template <typename Use>
bool with_rows(const Instruction& instruction, const ProgramJob& step, const Use& use) {
#define USE(Job) use(fitted(*static_cast<const Job*>(instruction.job), step))
  switch (instruction.operation) {
    case kQuantize: USE(QuantizeJob); return true;
    case kNorm: USE(NormJob); return true;
    case kRope: USE(RopeJob); return true;
    case kActivate: USE(ActivateJob); return true;
    case kAdd: USE(AddJob); return true;
    case kStore: USE(StoreJob); return true;
    case kGather: USE(GatherJob); return true;
    case kMix: USE(MixJob); return true;
    case kGate: USE(GateJob); return true;
    case kCombine: USE(CombineJob); return true;
    default: return false;
  }
#undef USE
}

// Instructions behind each other that treat each token by itself: a thread takes a few tokens through all of them, while
// they are in its caches. As many as a strip has keys, for these are stored together.
struct Passage {
  const ProgramJob& step;
  const Instruction* instructions;
  int64_t count;
  int64_t numbers;  // of a token
};

inline Passage passage_from(const ProgramJob& step, int64_t first) {
  Passage passage{step, step.instructions + first, 0, 0};
  const auto add_numbers = [&](const auto& job) {
    const auto rows = rows_of(job);
    passage.numbers += rows.count / step.tokens * rows.width;
  };
  while (first + passage.count < step.count && with_rows(passage.instructions[passage.count], step, add_numbers)) {
    ++passage.count;
  }
  return passage;
}

// Tokens begin … end - 1.
inline void pass(const Passage& passage, int64_t begin, int64_t end) {
  for (int64_t from = begin; from < end; from += kStrip) {
    const int64_t until = std::min(from + kStrip, end);
    const auto treat = [&](const auto& job) {
      const auto rows = rows_of(job);
      const int64_t each = rows.count / passage.step.tokens;
      rows.kernel(job, from * each, until * each);
    };
    for (int64_t i = 0; i < passage.count; ++i) with_rows(passage.instructions[i], passage.step, treat);
  }
}

// What threads have to meet for.
inline void perform(const Instruction& instruction, const ProgramJob& step) {
  switch (instruction.operation) {
    case kRound: perform(fitted(*static_cast<const RoundJob*>(instruction.job), step)); break;
    case kLinear: perform_linears(instruction, step); break;
    case kAttend: perform(fitted(*static_cast<const AttentionJob*>(instruction.job), step)); break;
    case kGrouped: perform_grouped(*static_cast<const GroupedJob*>(instruction.job)); break;
    case kAdapt: perform_adapt(instruction, step); break;
  }
}

inline void perform(const ProgramJob& step) {
  if (step.tokens == 0) return;
  for (int64_t i = 0; i < step.count;) {
    const Passage passage = passage_from(step, i);
    if (passage.count > 0) run(pass, passage, step.tokens, rows_worthwhile(passage.numbers));
    else perform(step.instructions[i], step);
    i += std::max<int64_t>(1, passage.count);
  }
}
