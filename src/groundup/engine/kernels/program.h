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
  job.rows = step.tokens, job.slots = step.slots;
  return job;
}

inline AttentionJob fitted(AttentionJob job, const ProgramJob& step) {
  job.block_table = step.block_table, job.table_stride = step.table_stride;
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

template <typename Job>
void perform_as(const Instruction& instruction, const ProgramJob& step) {
  perform(fitted(*static_cast<const Job*>(instruction.job), step));
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
    Activations& input = jobs.back().input;
    input.values += begin * input.stride, input.scales += begin, input.rows = rows;
    input.running_sums += begin * (input.stride / kSumColumns + 1);
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

inline void perform(const ProgramJob& step) {
  for (int64_t i = 0; i < step.count; ++i) {
    const Instruction& instruction = step.instructions[i];
    switch (instruction.operation) {
      case kQuantize: perform_as<QuantizeJob>(instruction, step); break;
      case kLinear: perform_linears(instruction, step); break;
      case kNorm: perform_as<NormJob>(instruction, step); break;
      case kRope: perform_as<RopeJob>(instruction, step); break;
      case kActivate: perform_as<ActivateJob>(instruction, step); break;
      case kAdd: perform_as<AddJob>(instruction, step); break;
      case kStore: perform_as<StoreJob>(instruction, step); break;
      case kAttend: perform_as<AttentionJob>(instruction, step); break;
      case kGather: perform_as<GatherJob>(instruction, step); break;
      case kMix: perform_as<MixJob>(instruction, step); break;
      case kGate: perform_as<GateJob>(instruction, step); break;
      case kCombine: perform_as<CombineJob>(instruction, step); break;
      case kGrouped: perform_grouped(*static_cast<const GroupedJob*>(instruction.job)); break;
      case kAdapt: perform_adapt(instruction, step); break;
    }
  }
}
