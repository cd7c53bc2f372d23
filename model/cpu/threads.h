// Work shared out among torch's own threads; a second thread pool in the process would fight it for the cores.
#pragma once

#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <vector>

#include "team.h"

namespace caravan {

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Numbers that begin where a cache line does: a register is loaded twice as fast from one line as from two.
struct Free {
  void operator()(void* numbers) const { std::free(numbers); }
};
template <class T>
using Lines = std::unique_ptr<T[], Free>;
template <class T>
Lines<T> lines_of(int64_t count) {
  return Lines<T>((T*)std::aligned_alloc(64, std::max<int64_t>(1, divide_up(count * sizeof(T), 64)) * 64));
}

// The number of threads that share_out can use here.
inline int64_t num_threads_here() {
  const Team* team = Team::led();
  return team ? team->num_threads : at::get_num_threads();
}

// Call f(unit) for every unit of work. Each thread has a stretch of its own, so that it reads memory in order, and when
// that is done helps the others: one that the operating system has taken off its core does not hold up the rest.
template <class F>
void share_out(int64_t num_units, const F& f) {
  const int64_t num_threads = std::min(num_threads_here(), num_units);
  if (num_threads <= 1) {
    for (int64_t unit = 0; unit < num_units; unit++) f(unit);
    return;
  }
  struct alignas(64) Stretch {
    std::atomic<int64_t> next;
    int64_t end;
  };
  std::vector<Stretch> stretches(num_threads);
  for (int64_t i = 0; i < num_threads; i++) {
    stretches[i].next = num_units * i / num_threads;
    stretches[i].end = num_units * (i + 1) / num_threads;
  }
  auto part = [&](int64_t thread) {
    for (int64_t i = 0; i < num_threads; i++) {
      Stretch& stretch = stretches[(thread + i) % num_threads];
      for (int64_t unit = stretch.next++; unit < stretch.end; unit = stretch.next++) f(unit);
    }
  };
  if (Team* team = Team::led()) return team->run(part);
  at::parallel_for(0, num_threads, 1, [&](int64_t thread, int64_t) { part(thread); });
}

}  // namespace caravan
