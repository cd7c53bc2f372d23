// A team of two threads, in whose parts an exception is thrown now and then. Built and run by test_team.py.
#include <omp.h>

#include <cstdint>
#include <cstdio>
#include <stdexcept>

namespace at {
inline int64_t get_num_threads() { return 2; }
inline bool in_parallel_region() { return false; }
template <class F>
void parallel_for(int64_t, int64_t, int64_t, const F& f) {
#pragma omp parallel num_threads(2)
  f(omp_get_thread_num(), 0);
}
}  // namespace at

#include "team.h"

int main() {
  constexpr int kSteps = 2000, kParts = 50, kUnits = 8;
  int num_thrown = 0, num_caught = 0, num_incomplete = 0;
  for (int step = 0; step < kSteps; step++) {
    const bool throws = step % 3 == 0;
    num_thrown += throws;
    try {
      caravan::with_team([&] {
        for (int number = 0; number < kParts; number++) {
          std::atomic<int> next{0}, num_done{0};
          caravan::Team::led()->run([&](int64_t) {
            for (int unit = next++; unit < kUnits; unit = next++) {
              if (throws && number == kParts / 2 && unit == step / 3 % kUnits) throw std::runtime_error("a unit failed");
              num_done++;
            }
          });
          num_incomplete += num_done != kUnits;
        }
      });
    } catch (const std::runtime_error&) {
      num_caught++;
    }
  }
  std::printf("%d of %d caught, %d parts incomplete\n", num_caught, num_thrown, num_incomplete);
}
