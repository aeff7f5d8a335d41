// A few threads that stay awake for a moment after each job, since the next one mostly follows at once.
//
// A job is a number of chunks, in as many lanes as there are threads: each claims those of its own lane one by one, so
// that it passes over memory in order, then those that others have left. A core that is taken away for a while holds up
// one chunk, not its share of everything. Which thread takes which chunk never changes a result. Whoever calls works
// too, and waits for claimed chunks alone, never for a thread that is still asleep.
#pragma once

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace pool {

using Work = void (*)(const void* job, int64_t begin, int64_t end);

using Clock = std::chrono::steady_clock;

// A thread that waits keeps its core to itself for as long as most jobs of others take, then gives it to whoever wants it,
// then sleeps: later than the Python between two steps takes, sooner than anybody notices on an idle machine.
constexpr auto kSpin = std::chrono::microseconds(50);
constexpr auto kAwake = std::chrono::milliseconds(1);

inline void pause() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

inline void wait_a_moment(Clock::duration waited) {
  if (waited < kSpin) pause();
  else std::this_thread::yield();
}

class Pool {
 public:
  explicit Pool(int threads) : lanes_(threads) {
    for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { serve(i); });
  }

  ~Pool() {
    {
      std::lock_guard<std::mutex> lock(sleep_);
      stopping_ = true;
    }
    wake_.notify_all();
    for (std::thread& worker : workers_) worker.join();
  }

  // Calls work(job, begin, end) for pieces of 0 … items, each of `grain` items but the last. One job at a time.
  void run(Work work, const void* job, int64_t items, int64_t grain) {
    std::lock_guard<std::mutex> one_job(caller_);
    const int64_t chunks = (items + grain - 1) / grain;
    work_ = work, job_ = job, items_ = items, grain_ = grain;
    unfinished_.store(chunks, std::memory_order_relaxed);
    for (int i = 0; i < threads(); ++i) {
      lanes_[i].end = chunks * (i + 1) / threads();
      lanes_[i].unclaimed.store(lanes_[i].end - chunks * i / threads());
    }
    if (sleepers_.load() > 0) {
      { std::lock_guard<std::mutex> lock(sleep_); }
      wake_.notify_all();
    }
    while (claim(0)) {}
    const auto since = Clock::now();
    while (unfinished_.load(std::memory_order_acquire) > 0) wait_a_moment(Clock::now() - since);
  }

  int threads() const { return static_cast<int>(lanes_.size()); }

 private:
  // Neighbours that different threads write to share no cache line.
  struct alignas(64) Lane {
    std::atomic<int64_t> unclaimed{0};
    int64_t end = 0;  // the chunk behind its last
  };

  // Does one chunk, if one is left, of its own lane if possible.
  bool claim(int own) {
    for (int i = 0; i < threads(); ++i) {
      if (claim_of(lanes_[(own + i) % threads()])) return true;
    }
    return false;
  }

  // What a job is may be read once a chunk of it is claimed: it stays as it is until that chunk is finished.
  bool claim_of(Lane& lane) {
    int64_t left = lane.unclaimed.load();
    do {
      if (left <= 0) return false;
    } while (!lane.unclaimed.compare_exchange_weak(left, left - 1));
    const int64_t begin = (lane.end - left) * grain_;
    work_(job_, begin, std::min(begin + grain_, items_));
    unfinished_.fetch_sub(1, std::memory_order_release);
    return true;
  }

  bool is_any_left() const {
    return std::any_of(lanes_.begin(), lanes_.end(), [](const Lane& lane) { return lane.unclaimed.load() > 0; });
  }

  void serve(int own) {
    while (true) {
      auto since = Clock::now();
      for (auto now = since; now - since < kAwake; now = Clock::now()) {
        if (claim(own)) since = Clock::now();
        else wait_a_moment(now - since);
      }
      std::unique_lock<std::mutex> lock(sleep_);
      sleepers_.fetch_add(1);  // before it looks once more, so that either it sees the job or the caller sees it
      wake_.wait(lock, [this] { return stopping_ || is_any_left(); });
      sleepers_.fetch_sub(1);
      if (stopping_) return;
    }
  }

  Work work_ = nullptr;
  const void* job_ = nullptr;
  int64_t items_ = 0, grain_ = 1;
  std::vector<Lane> lanes_;
  alignas(64) std::atomic<int64_t> unfinished_{0};
  alignas(64) std::atomic<int> sleepers_{0};
  bool stopping_ = false;
  std::mutex caller_, sleep_;
  std::condition_variable wake_;
  std::vector<std::thread> workers_;
};

// The one pool of this process. A forked child has none of its parent's threads: it forgets the pool, which may be in
// any state, and starts its own when it first needs one.
inline std::atomic<Pool*> current{nullptr};
inline std::atomic<int> wanted_threads{1};
inline std::atomic_flag starting = ATOMIC_FLAG_INIT;

inline void forget_after_fork() {
  current.store(nullptr);
  starting.clear();
}

// Runs with `starting` held.
inline Pool* replace(int threads) {
  static const int registered = pthread_atfork(nullptr, nullptr, forget_after_fork);
  (void)registered;
  delete current.exchange(nullptr);
  Pool* made = new Pool(threads);
  current.store(made);
  return made;
}

// Not while other calls run: what they work with is taken down.
inline void set_threads(int threads) {
  while (starting.test_and_set()) pause();
  wanted_threads.store(threads);
  Pool* pool = current.load();
  if (pool == nullptr || pool->threads() != threads) replace(threads);
  starting.clear();
}

inline Pool* get() {
  Pool* pool = current.load();
  if (pool != nullptr) return pool;
  while (starting.test_and_set()) pause();
  pool = current.load();
  if (pool == nullptr) pool = replace(wanted_threads.load());
  starting.clear();
  return pool;
}

// Small jobs, those of one piece, and all with one thread, run where they are called.
inline void run(Work work, const void* job, int64_t items, int64_t smallest_grain) {
  const int64_t threads = wanted_threads.load();
  const int64_t grain = std::max(smallest_grain, items / (threads * 8));
  if (threads == 1 || items <= grain) {
    if (items > 0) work(job, 0, items);
    return;
  }
  get()->run(work, job, items, grain);
}

}  // namespace pool
