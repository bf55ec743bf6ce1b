#include "bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <iterator>

#include "pool.h"
#include "run/buffer.h"
#include "run/reading.h"

namespace bitsmith {
namespace {

constexpr size_t kPiece = size_t{1} << 20;  // so that a slow core holds up little

}  // namespace

double read_bandwidth(int threads, size_t bytes, int passes) {
  const int pieces = static_cast<int>(std::clamp<size_t>(bytes / kPiece, 1, 65535));
  Buffer buffer(pieces * kPiece);
  Pool pool(threads);
  pool.run(pieces, [&](int piece) { std::fill_n(buffer.data() + piece * kPiece, kPiece, 1); });
  const Kernels &kernels = bitsmith::kernels(chosen_isa());
  std::atomic<uint64_t> total{0};  // is looked at below, so that nothing is optimised away
  double best = 0;
  for (int pass = 0; pass < passes; ++pass) {
    const Reading &reading = kReadings[pass % std::size(kReadings)];
    const auto start = std::chrono::steady_clock::now();
    pool.run(pieces, [&](int piece) { total += kernels.read(buffer.data() + piece * kPiece, kPiece, reading); });
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    best = std::max(best, static_cast<double>(pieces) * kPiece / spent.count());
  }
  return total > 0 ? best : 0;
}

}  // namespace bitsmith
