#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>

#include "pool.h"

namespace bitsmith {
namespace {

constexpr size_t kPieceWords = size_t{1} << 17;  // 1 MB, so that a slow core holds up little
constexpr size_t kLanes = 32;                    // sums that do not wait for each other

uint64_t sum_of(const uint64_t *words, size_t count) {
  uint64_t sums[kLanes] = {};
  for (size_t i = 0; i < count; i += kLanes) {
    for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += words[i + lane];
  }
  uint64_t total = 0;
  for (uint64_t sum : sums) total += sum;
  return total;
}

}  // namespace

double read_bandwidth(int threads, size_t bytes, int passes) {
  const int pieces = static_cast<int>(std::clamp<size_t>(bytes / (8 * kPieceWords), 1, 65535));
  const std::unique_ptr<uint64_t[]> words(new uint64_t[pieces * kPieceWords]);
  Pool pool(threads);
  pool.run(pieces, [&](int piece) { std::fill_n(&words[piece * kPieceWords], kPieceWords, piece + 1); });
  std::atomic<uint64_t> total{0};  // is looked at below, so that nothing is optimised away
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const auto start = std::chrono::steady_clock::now();
    pool.run(pieces, [&](int piece) { total += sum_of(&words[piece * kPieceWords], kPieceWords); });
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(pieces) * kPieceWords * 8 / spent.count());
  }
  return total > 0 ? best : 0;
}

}  // namespace bitsmith
