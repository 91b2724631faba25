// Threads that go through a list of phases together: within a phase they share out its items, between phases they meet.
//
// One parallel region for a whole forward pass instead of one for each operation: waking threads costs more than most
// operations of a decode step. Items are handed out as threads ask for them, so a thread that loses its core to a
// neighbour does fewer of them. Waiting spins shortly and then yields.
#pragma once
#include <sched.h>

#include <atomic>
#include <cstdint>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace plexus {

inline void relax() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  explicit Team(int size) : size_(size) {}

  int size() const { return size_; }

  // Calls `work(from, to)` for all of [0, items) in pieces of `grain`, by whichever thread is free, and waits for the
  // others. Every thread of the team calls it with the same arguments.
  template <class Work>
  void share(int64_t items, int64_t grain, Work work) {
    while (true) {
      int64_t from = next_.fetch_add(grain, std::memory_order_relaxed);
      if (from >= items) break;
      work(from, from + grain < items ? from + grain : items);
    }
    meet();
  }

 private:
  void meet() {
    uint32_t generation = generation_.load(std::memory_order_acquire);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size_) {
      arrived_.store(0, std::memory_order_relaxed);
      next_.store(0, std::memory_order_relaxed);
      generation_.store(generation + 1, std::memory_order_release);
      return;
    }
    for (int turn = 0; generation_.load(std::memory_order_acquire) == generation; turn++) {
      if (turn < kSpins)
        relax();
      else
        sched_yield();
    }
  }

  static constexpr int kSpins = 4000;
  int size_;
  alignas(64) std::atomic<int64_t> next_{0};
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
};

// Runs `body(team)` on so many threads.
template <class Body>
void run(int threads, Body body) {
#if defined(_OPENMP)
  if (threads > 1) {
    Team* team = nullptr;
#pragma omp parallel num_threads(threads)
    {
#pragma omp single
      team = new Team(omp_get_num_threads());
      body(*team);
    }
    delete team;
    return;
  }
#endif
  Team team(1);
  body(team);
}

}  // namespace plexus
