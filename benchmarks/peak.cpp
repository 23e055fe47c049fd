// Fused multiply-adds on registers alone, on every thread: what no computation in float32 can pass on this processor.
#include <chrono>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int CHAINS = 12;  // enough to hide the latency of two units, few enough for 16 registers
constexpr int STEPS = 4096;

typedef float Vec __attribute__((vector_size(LANES * sizeof(float))));
using Clock = std::chrono::steady_clock;

static double seconds_since(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Floating-point operations that one thread did, and how long it took.
static void work(double seconds, float factor, float term, double* operations, double* spent, float* sink) {
  Vec sums[CHAINS];
  for (int i = 0; i < CHAINS; ++i) sums[i] = Vec{} + static_cast<float>(i);
  const Vec by = Vec{} + factor, plus = Vec{} + term;
  const auto start = Clock::now();
  double done = 0;
  do {
    for (int step = 0; step < STEPS; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < CHAINS; ++i) sums[i] = sums[i] * by + plus;
    }
    done += 2.0 * LANES * CHAINS * STEPS;
  } while (seconds_since(start) < seconds);
  *spent = seconds_since(start);
  *operations = done;
  for (int i = 0; i < CHAINS; ++i) *sink += sums[i][0];
}

// Floating-point operations per second of all threads together.
extern "C" __attribute__((visibility("default"))) double peak_flops(int threads, double seconds) {
  volatile float factor = 0.999f, term = 0.5f;  // nothing that a compiler knows, and sums that stay near 500
  std::vector<double> operations(threads), spent(threads);
  std::vector<float> sinks(threads);
  std::vector<std::thread> pool;
  for (int i = 0; i < threads; ++i)
    pool.emplace_back(work, seconds, factor, term, &operations[i], &spent[i], &sinks[i]);
  for (auto& thread : pool) thread.join();
  double total = 0;
  for (int i = 0; i < threads; ++i) total += operations[i] / spent[i];
  return total;
}
