// Threads that share out the tasks of one phase after another.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

#include <sched.h>

// A step has hundreds of phases of some ten microseconds, so waiting is spinning, for a while.
// Whoever comes first takes the next task: a thread that has lost its core to another process holds up only the task that
// it has in hand, and one that has none is not waited for.
class Pool {
 public:
  explicit Pool(int n_threads) {
    for (int i = 1; i < n_threads; ++i) workers_.emplace_back([this] { work(); });
  }

  ~Pool() {
    is_closing_ = true;
    wake();
    for (auto& worker : workers_) worker.join();
  }

  int n_threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls task(i) for i in 0 … n-1, and returns when all are done.
  template <class Task>
  void run(int n, const Task& task) {
    if (workers_.empty() || n == 1) {
      for (int i = 0; i < n; ++i) task(i);
      return;
    }
    // 1. Nobody holds a task of the phase before, so what describes the phase may change.
    context_ = &task;
    call_ = [](const void* context, int i) { (*static_cast<const Task*>(context))(i); };
    n_done_.store(0, std::memory_order_relaxed);
    // 2. Open it: the count of tasks and the next one are one word, so a late thread can't mix two phases up.
    state_.store(uint64_t(n) << 32);
    if (n_asleep_.load() > 0) wake();
    // 3. Take part; then wait for the tasks that others have in hand.
    take();
    for (int spins = 0; n_done_.load(std::memory_order_acquire) < n; ++spins) {
      if (spins < kSpinsBeforeYield) pause();
      else sched_yield();
    }
  }

 private:
  static constexpr int kSpinsBeforeYield = 2000;
  static constexpr int kSpinsBeforeSleep = 20000;  // about 0.3 ms: between two steps they sleep, within one they don't

  static void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  static bool has_task(uint64_t state) { return uint32_t(state) < uint32_t(state >> 32); }

  void take() {
    while (has_task(state_.load(std::memory_order_relaxed))) {
      const uint64_t mine = state_.fetch_add(1);
      if (!has_task(mine)) return;  // the last one went to somebody else
      call_(context_, static_cast<int>(uint32_t(mine)));  // of the phase in `mine`: it can't end before this does
      n_done_.fetch_add(1, std::memory_order_release);
    }
  }

  void work() {
    while (!is_closing_) {
      for (int spins = 0; spins < kSpinsBeforeSleep; ++spins) {
        if (has_task(state_.load(std::memory_order_acquire))) {
          take();
          spins = 0;
        }
        pause();
      }
      const uint32_t seen = n_wakes_.load();
      n_asleep_.fetch_add(1);
      // Whoever opens a phase from here on sees that somebody is asleep.
      if (!is_closing_ && !has_task(state_.load())) n_wakes_.wait(seen);
      n_asleep_.fetch_sub(1);
    }
  }

  void wake() {
    n_wakes_.fetch_add(1);
    n_wakes_.notify_all();
  }

  alignas(64) std::atomic<uint64_t> state_{0};  // upper half: tasks of the phase; lower half: the next one
  alignas(64) std::atomic<int> n_done_{0};
  alignas(64) std::atomic<uint32_t> n_wakes_{0};
  std::atomic<int> n_asleep_{0};
  std::atomic<bool> is_closing_{false};
  const void* context_ = nullptr;
  void (*call_)(const void*, int) = nullptr;
  std::vector<std::thread> workers_;
};
