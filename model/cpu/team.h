// A team of threads that stays together for all parallel parts of a step.
//
// A step of a small model has hundreds of parallel parts of a few microseconds each; to start torch's threads and wait for
// them takes as long. In a team the others wait in memory for the next part, and sleep when none comes for a while, so
// that they do not keep a core that another program wants.
#pragma once

#include <ATen/Parallel.h>

#include <atomic>
#include <exception>
#include <thread>
#include <utility>

namespace caravan {

inline void pause_briefly() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

class Team {
 public:
  const int64_t num_threads;

  explicit Team(int64_t num_threads) : num_threads(num_threads) {}

  // The team that this thread leads, or null.
  static Team*& led() {
    thread_local Team* team = nullptr;
    return team;
  }

  // Call part(0) in this thread, and part(i) in each other thread that is awake in time; return when all calls have. A part
  // must do all of its work with any number of these calls. The first exception of a call is thrown when all have ended.
  template <class F>
  void run(const F& part) {
    call_ = [](const void* f, int64_t i) { (*(const F*)f)(i); };
    part_ = &part;
    number_ += kNextPart;
    state_.store(number_ | kIsOpen, std::memory_order_seq_cst);
    if (num_asleep_.load(std::memory_order_seq_cst)) state_.notify_all();
    call(0);
    state_.fetch_and(~kIsOpen, std::memory_order_acq_rel);
    for (int spins = 0; state_.load(std::memory_order_acquire) & kTakingPart; spins++)
      spins < kSpins ? pause_briefly() : std::this_thread::yield();
    if (has_failed_.exchange(false)) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  // Take part, as thread i, until the leader ends the team.
  void follow(int64_t i) {
    uint32_t last = 0;  // number of the part that was taken part in
    int spins = 0;
    for (;;) {
      uint32_t state = state_.load(std::memory_order_acquire);
      if (state == kHasEnded) return;
      if ((state & kIsOpen) && (state & kNumber) != last) {
        if (!state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) continue;
        last = state & kNumber;
        call(i);
        state_.fetch_sub(1, std::memory_order_release);
        spins = 0;
      } else if (spins++ < kSpins) {
        pause_briefly();
      } else {
        num_asleep_.fetch_add(1, std::memory_order_seq_cst);
        state_.wait(state, std::memory_order_seq_cst);
        num_asleep_.fetch_sub(1, std::memory_order_relaxed);
        spins = 0;
      }
    }
  }

  void end() {
    state_.store(kHasEnded, std::memory_order_seq_cst);
    state_.notify_all();
  }

 private:
  void call(int64_t i) {
    try {
      call_(part_, i);
    } catch (...) {
      if (!has_failed_.exchange(true)) error_ = std::current_exception();
    }
  }

  // Bits of the state: how many others take part now, whether more may, and the number of the part.
  static constexpr uint32_t kTakingPart = 0xfff, kIsOpen = 0x1000, kNextPart = 0x2000, kNumber = ~(kNextPart - 1);
  static constexpr uint32_t kHasEnded = 1;  // no part has the number 0
  static constexpr int kSpins = 1000;       // 10 to 40 microseconds

  alignas(64) std::atomic<uint32_t> state_{0};
  alignas(64) std::atomic<int32_t> num_asleep_{0};
  uint32_t number_ = 0;
  void (*call_)(const void*, int64_t) = nullptr;
  const void* part_ = nullptr;
  std::atomic<bool> has_failed_{false};
  std::exception_ptr error_;
};

// Call f() once, with all of torch's threads in a team for the parallel parts in it. Exceptions of f pass through.
template <class F>
void with_team(const F& f) {
  const int64_t num_threads = at::get_num_threads();
  if (num_threads <= 1 || at::in_parallel_region()) return f();
  Team team(num_threads);
  std::exception_ptr error;
  at::parallel_for(0, num_threads, 1, [&](int64_t i, int64_t) {
    if (i) return team.follow(i);
    Team::led() = &team;
    try {
      f();
    } catch (...) {
      error = std::current_exception();
    }
    Team::led() = nullptr;
    team.end();
  });
  if (error) std::rethrow_exception(error);
}

}  // namespace caravan
